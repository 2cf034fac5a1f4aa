"""Training in bfloat16 under every engine, on the CPU: it starts, and computes what float32 does but for rounding."""

import csv

import pytest
from toy_process import train_in_a_process

from vita_audio_pl.training.run_folder import StageFolder

COMMON = ("stage.steps=2", "rendering.text_weight=4", "stage.learning_rate=0.01", "callbacks.samples.every_steps=0")
TWO = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.rows_per_device=1")


def losses(folder: StageFolder) -> list[float]:
    with (folder.root / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_weighted_labels_train_in_bfloat16(trained, precision):
    exact = losses(trained("align", *COMMON, "run_name=exact"))
    assert losses(trained("align", *COMMON, "run_name=half", f"trainer.precision={precision}")) == pytest.approx(exact, rel=0.02)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["fsdp2", "deepspeed_zero2"])
def test_sharded_engines_train_weighted_labels_in_bfloat16(trained, engine, tmp_path):
    exact = losses(trained("align", *COMMON))
    assert train_in_a_process(tmp_path / "two", "stage=align", *COMMON, *TWO, f"trainer={engine}") == 0
    assert losses(StageFolder(tmp_path / "two" / "runs" / "toy" / "align")) == pytest.approx(exact, rel=0.02)
