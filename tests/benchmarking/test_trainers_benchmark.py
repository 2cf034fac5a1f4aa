"""The benchmark of several processes reads what the runs themselves logged, and compares like with like."""

import json
import subprocess
from pathlib import Path

import pytest

from vita_audio_pl.benchmarking import trainers
from vita_audio_pl.benchmarking.trainers import benchmark_trainers, trainers_table, write_paces
from vita_audio_pl.benchmarking.trainers_settings import TrainersBenchmark
from vita_audio_pl.errors import UserError

COLUMNS = "step,tokens_per_second,checkpoint_wait_share,data_wait_share\n"


def test_runs_take_turns_share_the_threads_and_drop_their_first_reading(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        given = dict(part.split("=", 1) for part in command if "=" in part)
        rate = 100 if given["trainer"] == "cpu" else 80
        folder = Path(given["paths.runs"], given["run_name"], "align")
        folder.mkdir(parents=True)
        rows = [(10, 1, 0.9, 0.9), (20, rate, 0.0, 0.1), (25, "", "", ""), (30, rate / 2, 0.06, 0.1)]
        (folder / "metrics.csv").write_text(COLUMNS + "".join(",".join(map(str, row)) + "\n" for row in rows))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(trainers.subprocess, "run", run)
    settings = TrainersBenchmark(threads=2, rounds=2, steps=30, overrides=["seed=5"])
    one, two = benchmark_trainers(settings, "data", tmp_path, lambda line: None)
    assert [[part for part in command if part.startswith("trainer")] for command in commands] == [
        ["trainer=cpu", "trainer.threads=2"],
        ["trainer=cpu_ddp", "trainer.devices=2", "trainer.threads=1"],
    ] * 2
    assert all("seed=5" in command for command in commands)
    assert one.tokens_per_second == [100, 50] * 2 and one.median / two.median == pytest.approx(1.25)
    assert one.checkpoint_share == pytest.approx(0.04)  # 6 % of the slower, so twice as long, of two readings
    assert not list(tmp_path.iterdir())
    write_paces([one, two], settings, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["paces"][1]["tokens_per_second"] == [80, 40] * 2
    assert list(trainers_table([one, two], settings).columns[2].cells) == ["1.00", "1.25"]


def test_a_run_that_fails_says_why_and_settings_must_share_evenly(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 2, "", "noise\nerror: the disk is full\n")
    monkeypatch.setattr(trainers.subprocess, "run", lambda command, **options: failed)
    with pytest.raises(UserError, match="1 processes ended with status 2: error: the disk is full"):
        benchmark_trainers(TrainersBenchmark(), "data", tmp_path, lambda line: None)
    with pytest.raises(UserError, match="must each divide trainers.threads=3"):
        TrainersBenchmark(threads=3).check()
