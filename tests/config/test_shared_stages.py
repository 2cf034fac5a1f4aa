"""What the arms of the shipped experiments share, by the settings that a stage's weights follow from."""

import dataclasses
import json

import pytest

from tests.config.test_conf import composed
from vita_audio_pl.training.run_folder import decisive_settings
from vita_audio_pl.training.stage import configured_objective

ARMS = {
    "objective": ["objective=every_head", "objective=served_slots", "objective=audio_only", "objective=distil"],
    "interval_ratio": ["text_audio_interval_ratio=[1,10,4,10]", "text_audio_interval_ratio=[4,10]"],
    "n_heads": ["n_heads=10", "n_heads=5"],
    "head_weight": ["objective.weight=1.0", "objective.weight=0.1"],
    "detach": ["objective.detach_heads=false", "objective.detach_heads=true"],
}


@pytest.mark.parametrize(
    ("experiment", "shared"),
    [
        ("objective", {"align"}),
        ("interval_ratio", set()),
        ("n_heads", {"align", "mtp1"}),
        ("head_weight", {"align", "mtp1", "mtp10"}),
        ("detach", {"align", "mtp1", "mtp10"}),
    ],
)
def test_arms_share_the_stages_that_their_axis_does_not_reach(experiment, shared):
    arms = ARMS[experiment]
    stages = composed(f"experiment={experiment}", arms[0]).variant.stages
    differ = {
        stage: {
            json.dumps(
                decisive_settings(dataclasses.asdict(composed(f"experiment={experiment}", arm, f"stage={stage}")))
            )
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
    assert decisive_settings(dataclasses.asdict(on_cpu)) == decisive_settings(dataclasses.asdict(on_gpu))
