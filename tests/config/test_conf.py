"""The composed configuration says what the paper says, and groups combine as promised."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.errors import UserError
from vita_audio_pl.training.checks import apply_stage_settings, check_train_config
from vita_audio_pl.training.settings import TrainConfig

CONF = asset_dir("conf")


def composed(*overrides: str) -> TrainConfig:
    register_schema("train", TrainConfig)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return to_dataclass(compose("train", overrides=list(overrides)), apply_stage_settings)


@pytest.mark.parametrize(
    ("stage", "row"),
    [
        ("align", (0, 6e-5, 1.0, 8192, 256, 8000, 0.0)),
        ("mtp1", (1, 1e-3, 1.0, 8192, 256, 4000, 0.0)),
        ("mtp10", (10, 1e-3, 1.0, 8192, 256, 8000, 0.0)),
        ("sft", (None, 5e-5, 10.0, 2048, 256, 4000, 0.1)),
    ],
)
def test_published_stages_are_the_published_table(stage, row):
    s = composed(f"stage={stage}", "scale=published", "codec=mel_vq", "data=spoken_world", "trainer=ddp").stage
    assert row == (
        s.n_heads, s.learning_rate, s.head_rate_factor, s.sequence_length, s.rows_per_step, s.steps, s.weight_decay
    )  # fmt: skip


@pytest.mark.parametrize("group", ["variant", "stage", "interval", "objective", "logger", "model"])
def test_every_option_of_a_group_composes(group):
    for option in sorted(path.stem for path in (CONF / group).glob("*.yaml")):
        assert composed(f"{group}={option}")


def test_ratio_alone_sets_the_decoding_pattern_too():
    config = composed("text_audio_interval_ratio=[1,4,3,8,4,10]")
    assert config.decode_pattern == [1, 4, 3, 8, 4, 10]
    assert composed("interval=turbo").decode_pattern == [1, 10]
    assert composed("variant=vita_audio_balance").text_audio_interval_ratio == [1, 4, 3, 8, 4, 10]


@pytest.mark.parametrize(
    ("overrides", "kernel"),
    [
        ((), "per_document"),
        (("trainer=gpu",), "flash"),
        (("trainer=gpu", "trainer.precision=32-true"), "per_document"),
        (("trainer=fsdp2", "trainer.accelerator=cpu"), "per_document"),
        (("trainer=gpu", "model.attention=flex"), "flex"),
        (("scale=published",), "flash"),
    ],
)
def test_attention_left_open_fits_the_trainer(overrides, kernel):
    assert composed(*overrides).model.attention == kernel


@pytest.mark.parametrize("objective", sorted(path.stem for path in (CONF / "objective").glob("*.yaml")))
def test_published_losses_take_large_chunks_under_every_objective(objective):
    config = composed("scale=published", f"objective={objective}", "stage=sft")
    assert config.objective.name == objective and config.objective.chunk_rows == 4096
    assert composed(f"objective={objective}").objective.chunk_rows == 512


def test_flash_is_refused_where_it_cannot_run():
    with pytest.raises(UserError, match="model.attention=flash computes in 16 bits on GPUs, and trainer=cpu"):
        check_train_config(composed("model.attention=flash"))


def test_settings_of_one_stage_reach_that_stage_only():
    overrides = ("per_stage.mtp10.steps=7", "per_stage.mtp10.mixture=other")
    assert composed("stage=mtp10", *overrides).stage.steps == 7
    assert composed("stage=mtp10", *overrides).data.mixture == "other"
    assert composed("stage=mtp1", *overrides).stage.steps != 7


def test_the_command_line_wins_over_an_experiment_and_that_over_scale_and_stage(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /objective: served_slots\nexperiment:\n  question: does it hold?\n"
        "stage:\n  steps: 5\n"
    )
    monkeypatch.chdir(tmp_path)
    config = composed("experiment=mine")
    assert (config.objective.name, config.stage.steps, config.experiment.question) == (
        "served_slots", 5, "does it hold?"
    )  # fmt: skip
    # the experiment says nothing of rows: they are the scale's
    assert (
        config.stage.rows_per_step == composed().stage.rows_per_step != composed("scale=published").stage.rows_per_step
    )
    assert composed("experiment=mine", "stage.steps=6").stage.steps == 6
    assert composed("experiment=mine", "scale=published").stage.steps == 5


def test_plus_variants_hear_through_an_encoder_that_only_the_small_scale_trains():
    plus = composed("variant=vita_audio_plus_boost")
    check_train_config(plus)
    assert plus.variant.has_audio_encoder and plus.objective.detach_heads and plus.encoder.trains_in == ["align"]
    assert composed("variant=vita_audio_plus_vanilla", "stage=sft").n_heads == 0
    assert composed("variant=vita_audio_plus_boost", "scale=published").encoder.trains_in == []
    with pytest.raises(UserError, match="takes audio codes and has no encoder"):
        check_train_config(composed("encoder.folder=checkpoints/SenseVoiceSmall"))


def test_no_file_of_a_group_is_orphaned():
    scaled = {path.stem for path in Path(CONF / "scale_stage").glob("*.yaml")}
    stages = {path.stem for path in Path(CONF / "stage").glob("*.yaml")}
    assert all(name.split("_", 1)[1] in stages for name in scaled)
