"""Training in bfloat16 under every engine, on the CPU: it starts, and computes what float32 does but for rounding."""

import csv

import pytest
import torch
from toy import VOCABULARY, toy_config
from toy_process import train_in_a_process
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from vita_audio_pl.training.engines.precision import DeepSpeedWeights, HalfWeights
from vita_audio_pl.training.run_folder import StageFolder
from vita_audio_pl.training.starting_model import starting_model

COMMON = ("stage.steps=2", "rendering.text_weight=4", "stage.learning_rate=0.01", "callbacks.samples.every_steps=0")
TWO = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.rows_per_device=1")


def losses(folder: StageFolder) -> list[float]:
    with (folder.root / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_weighted_labels_train_in_bfloat16(trained, precision):
    exact = losses(trained("align", *COMMON, "run_name=exact"))
    assert losses(trained("align", *COMMON, "run_name=half", f"trainer.precision={precision}")) == pytest.approx(
        exact, rel=0.02
    )


@pytest.mark.parametrize(
    "plugin", [HalfWeights(), DeepSpeedWeights("bf16-true")], ids=lambda plugin: type(plugin).__name__
)
def test_positions_are_exact_in_a_model_of_bfloat16(plugin, tmp_path):
    model = starting_model(toy_config(tmp_path, "stage=align", "trainer.precision=bf16-true"), VOCABULARY, None)
    plugin.convert_module(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    far = torch.zeros(1), torch.tensor([[8000]])
    torch.testing.assert_close(model.model.rotary_emb(*far), Qwen2RotaryEmbedding(model.config.backbone)(*far))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["fsdp2", "deepspeed_zero2"])
def test_sharded_engines_train_weighted_labels_in_bfloat16(trained, engine, tmp_path):
    exact = losses(trained("align", *COMMON))
    assert train_in_a_process(tmp_path / "two", "stage=align", *COMMON, *TWO, f"trainer={engine}") == 0
    assert losses(StageFolder(tmp_path / "two" / "runs" / "toy" / "align")) == pytest.approx(exact, rel=0.02)
