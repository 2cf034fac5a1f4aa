"""An arm reaches wandb once, in its own project, also when the first attempt failed."""

import json

import pytest

from tests.config.test_conf import composed
from vita_audio_pl.sweeps import ablation
from vita_audio_pl.sweeps.ablation import train_arm
from vita_audio_pl.sweeps.sweep import Sweep
from vita_audio_pl.training.run_folder.manifest import StageManifest

OVERRIDES = ["experiment=objective", "seed=1"]


@pytest.fixture
def arm(tmp_path, monkeypatch):
    """Trains an arm whose stages and evaluation only pretend; what was run, and what wandb was asked."""
    asked, commands = [], []
    network = {"there": False}

    def stage(arm, stage, overrides, shards, prepare_data):
        model = tmp_path / arm.run_name / stage / "model"
        model.mkdir(parents=True, exist_ok=True)
        StageManifest(
            stage, "v", "r", None, None, None, f"w-{stage}", "v", "t", "c", "c", [1, 10], [1, 10], 10, 2, 0, 1
        ).write(model)
        return {"stage": stage, "folder": "f", "made_by": arm.run_name, "reused": False, "cpu_seconds": 1.0}

    def log_arm(config, folder, mode):
        asked.append(mode)
        if not network["there"]:
            raise ConnectionError("no route")

    monkeypatch.setattr(ablation, "_stage", stage)
    monkeypatch.setattr(ablation, "log_arm", log_arm)
    monkeypatch.setattr(ablation, "_evaluate_config", list)
    monkeypatch.setattr(ablation, "evaluation_keys", lambda settings: sorted(settings))
    monkeypatch.setattr(ablation.Cost, "run", lambda self, command: commands.append(command) or 0)

    def run() -> dict:
        config = composed("experiment=objective", "logger.wandb=online", "logger.wandb_project=lab", "seed=1")
        config.paths.runs = str(tmp_path)
        train_arm(config, OVERRIDES, Sweep(), lambda config: None)
        return json.loads((tmp_path / config.run_name / "arm.json").read_text())

    run.asked, run.commands, run.network, run.folder = asked, commands, network, tmp_path
    return run


def test_an_arm_is_logged_by_the_first_command_that_reaches_wandb_and_by_no_later_one(arm, capsys):
    first = arm()
    assert first["finished"] and not first["logged"] and "wandb has no arm objective/" in capsys.readouterr().err
    arm.network["there"] = True
    assert arm()["logged"] and arm()["logged"]
    assert arm.asked == ["online"] * 2
    assert len(arm.commands) == 1  # evaluated once

    path = arm.folder / first["run_name"] / "arm.json"
    path.write_text(json.dumps({name: first[name] for name in first if name != "logged"}))
    assert arm()["logged"] and len(arm.asked) == 3  # arms of before that was recorded are sent again, not refused

    path.write_text(json.dumps(first | {"logged": True, "evaluation": {}}))
    assert arm()["logged"] and len(arm.asked) == 4  # measured anew, so it is sent anew


def test_evaluations_land_in_the_project_of_the_training(arm):
    arm()
    assert {"wandb=online", "wandb_project=lab"} <= set(arm.commands[0])
