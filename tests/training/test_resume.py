"""A killed run goes on as if nothing had happened: the same weights to the last bit, the same log."""

import csv
import random
import signal

import pytest
from toy_process import train_in_a_process

from vita_audio_pl.storage.owned import MARK
from vita_audio_pl.training.run_folder.layout import StageFolder

STAGE = (
    "stage=align",
    "stage.steps=60",
    "callbacks.log_every=3",
    "callbacks.save_every=7",
    "trainer.rows_per_device=2",
    "callbacks.validate_every=20",
    "callbacks.samples.every_steps=10",
    "callbacks.samples.max_new_tokens=12",
)


def log_of(folder: StageFolder) -> list[dict[str, str]]:
    with (folder.root / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rates = ("tokens_per_second", "samples_per_second", "audio_hours_per_second", "tflops_per_device")
    timing = (*rates, "mfu", "data_wait_share", "checkpoint_wait_share", "memory_gib", "samples/seconds")
    return [{name: value for name, value in row.items() if name not in timing} for row in rows]


def last_step(folder: StageFolder) -> int:
    return max((int(row["step"]) for row in log_of(folder)), default=0)


def samples_of(folder: StageFolder) -> dict[str, bytes]:
    """Every file but the folders' marks, whose ids are drawn."""
    files = (path for path in folder.samples.rglob("*.*") if path.name != MARK)
    return {str(path.relative_to(folder.samples)): path.read_bytes() for path in files}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 7))])
def test_killed_and_resumed_run_gives_the_same_bits(tmp_path, seed):
    whole, killed = (StageFolder(tmp_path / name / "runs" / "toy" / "align") for name in ("whole", "killed"))
    assert train_in_a_process(tmp_path / "whole", *STAGE) == 0

    rng = random.Random(seed)
    for _ in range(2):
        at = rng.randrange(1, 60)
        reached = lambda at=at: (killed.root / "metrics.csv").exists() and last_step(killed) >= at  # noqa: E731
        status = train_in_a_process(tmp_path / "killed", *STAGE, kill_when=reached)
        assert status in (-signal.SIGKILL, 0)
    assert train_in_a_process(tmp_path / "killed", *STAGE) == 0

    weights = [(folder.model / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
    assert log_of(whole) == log_of(killed)
    assert samples_of(whole) == samples_of(killed) and len(list(whole.samples.iterdir())) == 6
    assert not list(killed.checkpoints.glob("*.tmp"))
