"""Arms that learn different things have different names, and axes that change nothing are refused."""

import dataclasses
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir

from tests.config.test_conf import CONF, composed
from vita_audio_pl import train
from vita_audio_pl.config.entry import register_schema
from vita_audio_pl.errors import UserError
from vita_audio_pl.sweeps import ablation
from vita_audio_pl.sweeps.ablation import Arm, train_arm
from vita_audio_pl.sweeps.sweep import Sweep
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.settings import TrainConfig

AXES = Sweep(axes=("seed", "objective"))


def named(*overrides: str, sweep: Sweep = AXES) -> str:
    return Arm.of(composed("experiment=objective", *overrides), ["experiment=objective", *overrides], sweep).run_name


def test_what_changes_the_weights_changes_the_name_of_an_arm():
    usual = named("objective=distil", "seed=2")
    assert usual == "objective/distil-seed2"
    for setting in ("per_stage.mtp10.steps=7", "trainer.precision=bf16-mixed", "optim.clip_norm=0.5"):
        assert named("objective=distil", "seed=2", setting) != usual
    for setting in ("experiment.suite=demo", "trainer.threads=1", "callbacks.save_every=5", "logger=csv"):
        assert named("objective=distil", "seed=2", setting) == usual
    steps = [named(f"per_stage.mtp10.steps={n}", sweep=Sweep(("per_stage.mtp10.steps",))) for n in (7, 8)]
    assert steps == ["objective/steps-7-seed0", "objective/steps-8-seed0"]


@pytest.mark.parametrize("axis", ["callbacks.save_every", "experiment.suite", "trainer.threads", "logger"])
def test_an_axis_that_changes_nothing_is_refused(axis):
    with pytest.raises(UserError, match=f"{axis} is an axis.*would be the same"):
        train_arm(composed("experiment=objective"), [], Sweep((axis,)), train.prepare_data)


def test_a_search_over_objectives_does_not_compare_their_own_losses():
    search = dataclasses.replace(AXES, optimises=True)
    with pytest.raises(UserError, match="smallest objective.*val/served_accuracy"):
        train_arm(composed("experiment=objective"), [], search, train.prepare_data)


def test_a_stage_on_pairs_does_not_take_the_shards_of_the_others(tmp_path, monkeypatch):
    used = {}
    monkeypatch.setattr(
        ablation, "content_hash", lambda config: used.update({config.stage.name: config.data.shards}) or "h"
    )
    monkeypatch.setattr(ablation.Cost, "run", lambda self, command: 0)
    words = ["experiment=objective", f"paths.runs={tmp_path}"]
    arm = Arm.of(composed(*words), words, AXES)
    register_schema("train", TrainConfig)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        for stage in ("sft", "dpo"):
            ablation._stage(arm, stage, words, "world", lambda config: setattr(config.data, "shards", "pairs"))
    assert used == {"sft": "world", "dpo": "pairs"}


def test_an_arm_that_is_stopped_before_its_stage_begins_leaves_a_folder_that_the_stage_can_take(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "content_hash", lambda config: "h")
    monkeypatch.setattr(ablation.Cost, "run", lambda self, command: 143)
    words = ["experiment=objective", f"paths.runs={tmp_path}"]
    arm = Arm.of(composed(*words), words, AXES)
    register_schema("train", TrainConfig)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)), pytest.raises(UserError):
        ablation._stage(arm, "align", words, "world", lambda config: None)
    folder = StageFolder(tmp_path / ablation.SHARED / "align-h")
    with folder.held("stage 'align'"):
        folder.open({"format": 3}, False, "one")  # refuses a folder that holds anything else


def test_an_evaluation_is_made_again_where_bench_judge_or_weights_have_changed(tmp_path, monkeypatch):
    """The same settings may mean another bench: what decides the results counts, and not only what was written."""
    config = composed("experiment=objective", f"paths.runs={tmp_path}")
    arm = Arm.of(config, ["experiment=objective"], AXES)
    deciding = {"weights": "w", "keys": ["k"]}
    asked, run = [], []
    monkeypatch.setattr(ablation, "evaluation_keys", lambda settings: asked.append(settings) or list(deciding["keys"]))
    monkeypatch.setattr(StageManifest, "read", lambda folder: SimpleNamespace(weights=deciding["weights"]))
    monkeypatch.setattr(ablation.Cost, "run", lambda self, command: run.append(command) or 0)

    def evaluate(earlier):
        register_schema("train", TrainConfig)
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return ablation._evaluate(config, arm, earlier)

    first = evaluate({})
    assert asked[0].suite.name and asked[0].bench.name == config.experiment.bench and len(run) == 1
    assert evaluate(first) == first and len(run) == 1
    for name, value in (("keys", ["another"]), ("weights", "v")):
        deciding[name] = value
        again = evaluate(first)
        assert again != first and evaluate(again) == again
        first = again
    assert len(run) == 3
