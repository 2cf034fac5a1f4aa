"""Stages of the variants that take audio through an encoder: who trains when, what is refused, and the same on every engine."""

import json

import pytest
import torch
import toy
from safetensors.torch import load_file
from toy_process import train_in_a_process

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.sensevoice import load_front_end
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.stage.data import stage_front_end

ENCODER, ADAPTER = "model.audio_model.", "model.audio_projection."


def weights_of(folder: StageFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.model / "model.safetensors")


@pytest.fixture
def plus(trained, tmp_path):
    """Trains a stage of Plus-Boost on the toy world."""
    encoder = toy.toy_encoder(tmp_path / "encoder")
    return lambda stage, *more: trained(stage, "variant=vita_audio_plus_boost", f"encoder.folder={encoder}", *more)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> bool:
    return any(not torch.equal(after[name], before[name]) for name in before if name.startswith(part))


def test_the_encoder_trains_where_the_scale_says_and_in_no_stage_of_the_published_one(plus, tmp_path):
    start = load_file(tmp_path / "encoder" / "model.safetensors")
    start = {f"{ENCODER}model.{name}": tensor for name, tensor in start.items()}
    assert changed(start, weights_of(plus("align")), ENCODER)
    published = plus("align", "run_name=published", "encoder.trains_in=[]")
    assert not changed(start, weights_of(published), ENCODER)
    assert json.loads((published.model / "manifest.json").read_text())["frozen"] == len(start)
    assert load_front_end(published.model / "speech_input").size == 560


def test_the_adapter_is_frozen_with_the_language_model_and_trains_with_it(plus):
    folders = [weights_of(plus(stage)) for stage in ("align", "mtp1", "mtp10", "sft")]
    for (before, after), moves in zip(zip(folders, folders[1:], strict=False), (False, False, True), strict=True):
        assert changed(before, after, ADAPTER) == changed(before, after, "model.embed_tokens.") == moves
        assert not changed(before, after, ENCODER)


def test_a_parent_that_hears_otherwise_and_a_missing_encoder_are_refused(plus, trained, tmp_path):
    align = trained("align", "run_name=discrete")
    with pytest.raises(UserError, match="its speech input .* is codes, and this run's is encoder; choose a variant"):
        plus("mtp1", f"init_from={align.model}")
    start = ("stage=mtp1", "variant=vita_audio_plus_boost", f"init_from={align.model}")
    with pytest.raises(UserError, match="takes audio through an encoder, but .* was trained on audio codes"):
        stage_front_end(toy.toy_config(tmp_path / "runs", *start))
    with pytest.raises(UserError, match="takes audio through an encoder, and .*nowhere holds none .* SenseVoiceSmall"):
        plus("align", "run_name=deaf", f"encoder.folder={tmp_path / 'nowhere'}")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_two_processes_train_what_one_does(engine, plus, tmp_path):
    parent: list[str] = []
    for stage in ("align", "mtp1"):
        expected = plus(stage)
        settings = (
            f"stage={stage}", "run_name=toy", "variant=vita_audio_plus_boost", f"encoder.folder={tmp_path / 'encoder'}",
            f"trainer={engine}", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true",
        )  # fmt: skip
        assert train_in_a_process(tmp_path / "two", *settings, *parent) == 0
        found = weights_of(StageFolder(tmp_path / "two" / "runs" / "toy" / stage))
        # a bias of keys has rounding errors for a gradient, which Adam enlarges
        for name, value in weights_of(expected).items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )
        parent = [f"init_from={expected.model}"]
