"""An ablation is one small file: its arms share what they agree on, go on after a kill, and end in one report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Place
from vita_audio_pl import train

MINE = """\
# @package _global_
defaults: [override /stage: chain]
variant: {stages: [align]}
experiment: {name: mine, question: "Does the weight of the heads matter where there are none?", suite: ""}
hydra: {sweeper: {params: {objective.weight: "1.0,0.5", seed: "1"}}}
"""
TINY = (
    "data=spoken_world_smoke", "data.workers=0", "stage.steps=2", "stage.rows_per_step=2", "data.validation_rows=2",
    "trainer.threads=1", "n_heads=2", "decode_pattern=[1,2]",
)  # fmt: skip


def arms(place: Place, experiment: str) -> dict[str, dict]:
    """What the arms say of themselves, by folder, in the order of the sweep."""
    found = [
        (path.parent.name, json.loads(path.read_text())) for path in place.folder.glob(f"runs/{experiment}/*/arm.json")
    ]
    return dict(sorted(found, key=lambda arm: arm[1]["number"]))


@pytest.mark.slow
@pytest.mark.ci
def test_a_file_of_five_lines_is_an_ablation_whose_arms_share_what_they_agree_on(place, monkeypatch, capfd):
    (place.folder / "experiments").mkdir()
    (place.folder / "experiments" / "mine.yaml").write_text(MINE)
    assert len(MINE.splitlines()) <= 10
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def sweep() -> str:
        monkeypatch.setattr(sys, "argv", ["train", "-m", "experiment=mine", *TINY])
        train.main()
        return capfd.readouterr().out

    told = sweep()
    assert told.count("stage 'align' is done") == 1 and "reused, made by mine/weight-1.0" in told
    made, reused = arms(place, "mine").values()
    assert not made["stages"][0]["reused"] and reused["stages"][0]["made_by"] == made["run_name"]
    assert made["stages"][0]["cpu_seconds"] > 0 and made["finished"] and reused["finished"]

    told = sweep()
    assert "is done" not in told and told.count("stage align is finished") == 1 and told.count("reused") == 1

    weights = json.loads(next(place.folder.glob("runs/shared_stages/*/model/manifest.json")).read_text())["weights"]
    (stage_log,) = place.folder.glob("runs/shared_stages/*/wandb/offline-run-*/*.wandb")
    logged = stage_log.read_bytes()
    for expected in (
        b"mine",
        b"vita_audio_boost",
        b"stage.steps",
        f"model-{weights}".encode(),
        b"data-",
        b"train/loss",
    ):
        assert expected in logged
    arm_logs = [path.read_bytes() for path in place.folder.glob("runs/mine/*/wandb/offline-run-*/*.wandb")]
    assert len(arm_logs) == 2 and all(b"arm-mine-weight" in log and b"Does the weight" in log for log in arm_logs)


@pytest.mark.parametrize("setting", ["run_name=x", "force=true"])
def test_settings_without_a_place_in_an_ablation_are_refused(setting, place, monkeypatch, capsys):
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(sys, "argv", ["train", "experiment=objective", *TINY, setting])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 2 and "has no place" in capsys.readouterr().err


@pytest.mark.slow
def test_objective_ablation_runs_from_training_to_the_report(place):
    few = (
        "experiment.suite=ablation_smoke",
        "experiment.bench=spoken_world_smoke",
        "per_stage.mtp10.steps=2",
        "seed=1",
    )
    place.run("-m", "vita_audio_pl.train", "-m", "experiment=objective", *TINY, *few, "logger=csv")
    found = arms(place, "objective")
    assert len(found) == 4 and sum(not arm["stages"][0]["reused"] for arm in found.values()) == 1
    told = place.run("-m", "vita_audio_pl.report", "experiment=objective")
    assert "was reused by 3 arms" in " ".join(told.split())
    page = (place.folder / "runs/objective/report/index.html").read_text(encoding="utf-8")
    # two steps teach nobody to speak: that sounds have players is tested with a made-up experiment
    assert all(name in page for name in ("every_head", "served_slots", "audio_only", "distil"))
    assert (place.folder / "runs/objective/report/wer_against_speed.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [("hydra/launcher=joblib",), ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")])
def test_an_ablation_runs_under_other_launchers_and_sweepers(how, place):
    (place.folder / "experiments").mkdir()
    (place.folder / "experiments" / "mine.yaml").write_text(MINE)
    place.run("-m", "vita_audio_pl.train", "-m", "experiment=mine", *how, *TINY, "logger=csv")
    stages = [arm["stages"][0] for arm in arms(place, "mine").values()]
    assert len({stage["folder"] for stage in stages}) == 1 and sum(not stage["reused"] for stage in stages) <= 1


@pytest.mark.slow
def test_a_killed_ablation_goes_on_with_the_same_command(place):
    (place.folder / "experiments").mkdir()
    (place.folder / "experiments" / "mine.yaml").write_text(MINE)
    command = [
        "-m",
        "vita_audio_pl.train",
        "-m",
        "experiment=mine",
        *TINY,
        "stage.steps=40",
        "callbacks.save_every=4",
        "logger=csv",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=place.folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout or ():
        if "step " in line:
            break
    os.killpg(process.pid, 9)
    process.wait()
    told = place.run(*command)
    assert "resuming from step-" in told and "reused" in told
    assert all(arm["finished"] for arm in arms(place, "mine").values())


def test_shipped_experiments_are_at_most_ten_lines_and_compose():
    from tests.config.test_conf import composed
    from vita_audio_pl.assets import asset_dir

    files = sorted(Path(asset_dir("experiments")).glob("*.yaml"))
    assert {path.stem for path in files} >= {
        "interval_ratio",
        "objective",
        "n_heads",
        "heads_form",
        "head_weight",
        "stage_skip",
        "detach",
    }
    for path in files:
        assert len(path.read_text().splitlines()) <= 10
        config = composed(f"experiment={path.stem}")
        assert (
            config.experiment.name == path.stem
            and config.experiment.question.endswith("?")
            and config.stage.name == "chain"
        )
