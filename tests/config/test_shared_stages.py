"""What the arms of the shipped experiments share, by the settings that a stage's weights follow from."""

import functools
import json

import pytest

from tests.config.test_conf import composed
from vita_audio_pl.config.component import plain
from vita_audio_pl.training.run_folder.identity import decisive_settings
from vita_audio_pl.training.step.objective import configured_objective

ARMS = {
    "objective": ["objective=every_head", "objective=served_slots", "objective=audio_only", "objective=distil"],
    "interval_ratio": ["text_audio_interval_ratio=[1,10,4,10]", "text_audio_interval_ratio=[4,10]"],
    "n_heads": ["n_heads=10", "n_heads=5"],
    "heads_form": ["model.heads=mctp", "model.heads=parallel"],
    "head_weight": ["objective.weight=1.0", "objective.weight=0.1"],
    "detach": ["objective.detach_heads=false", "objective.detach_heads=true"],
}


@pytest.mark.parametrize(
    ("experiment", "shared"),
    [
        ("objective", {"align"}),
        ("interval_ratio", set()),
        ("n_heads", {"align", "mtp1"}),
        ("heads_form", {"align"}),
        ("head_weight", {"align", "mtp1", "mtp10"}),
        ("detach", {"align", "mtp1", "mtp10"}),
    ],
)
def test_arms_share_the_stages_that_their_axis_does_not_reach(experiment, shared):
    arms = ARMS[experiment]
    stages = composed(f"experiment={experiment}", arms[0]).variant.stages
    differ = {
        stage: {
            json.dumps(decisive_settings(plain(composed(f"experiment={experiment}", arm, f"stage={stage}"))))
            for arm in arms
        }
        for stage in stages
    }
    assert {stage for stage, settings in differ.items() if len(settings) == 1} == shared
    assert all(len(settings) == len(arms) for stage, settings in differ.items() if stage not in shared)


def test_heads_are_weighed_where_the_backbone_trains():
    def weight(stage: str) -> float:
        return configured_objective(composed("objective.weight=0.3", f"stage={stage}"), vocabulary=None).weight

    assert (weight("mtp1"), weight("mtp10"), weight("sft")) == (1.0, 1.0, 0.3)


def test_a_run_may_move_to_a_device_with_another_kernel_of_attention():
    on_cpu, on_gpu = composed("trainer=cpu"), composed("trainer=gpu")
    assert (on_cpu.model.attention, on_gpu.model.attention) == ("per_document", "flash")
    assert decisive_settings(plain(on_cpu)) == decisive_settings(plain(on_gpu))


SFT = ("stage=sft", "objective.weight=0.3")
PART = r"stage.freeze=['^model\.layers\.0\.']"
WHOLE = r"stage.freeze=['^(model|lm_head)\.']"


@functools.lru_cache
def decisive(*overrides: str) -> dict:
    return decisive_settings(plain(composed(*overrides)))


def test_freezing_a_part_of_the_backbone_leaves_the_heads_weight_and_detachment_what_they_are():
    for overrides in ((*SFT, PART), SFT):
        assert decisive(*overrides)["objective"]["weight"] == 0.3
        assert configured_objective(composed(*overrides), vocabulary=None).weight == 0.3
        assert decisive(*overrides) != decisive(*overrides, "objective.detach_heads=true")
    assert decisive(*SFT, WHOLE)["objective"]["weight"] == 1.0
    assert decisive(*SFT, WHOLE) == decisive("stage=sft", WHOLE, "objective.detach_heads=true")


def test_a_run_from_before_families_is_the_run_that_it_was():
    config = plain(composed("stage=mtp10"))
    earlier = {**config, "model": {k: v for k, v in config["model"].items() if k not in ("family", "head_dim")}}
    assert decisive_settings(earlier) == decisive_settings(config)


@pytest.mark.parametrize(
    "override",
    [
        "model.activation_checkpointing=all",
        "model.checkpoint_every=2",
        "model.compile=heads",
        "model.attention=sdpa",
        "model.pretrained=elsewhere",
        "objective.chunk_rows=64",
        "objective.kernel=liger",
        "trainer.rows_per_device=1",
        "callbacks.keep_last=5",
        "paths.runs=elsewhere",
    ],
)
def test_what_changes_no_more_than_rounding_makes_no_other_run(override):
    assert decisive("stage=sft") == decisive("stage=sft", override)


@pytest.mark.parametrize(
    "override",
    [
        "stage.steps=7",
        "optim.optimizer.eps=1e-6",
        "objective.weight=0.5",
        "objective=distil",
        "model.lora.rank=4",
        "seed=5",
    ],
)
def test_what_changes_the_mathematics_makes_another_run(override):
    assert decisive("stage=sft") != decisive("stage=sft", override)
