"""ZeRO-3 with parameters and optimiser state in host memory."""

import csv

import pytest
from toy_process import train_in_a_process

from vita_audio_pl.training.run_folder.layout import StageFolder


def losses(folder: StageFolder) -> list[float]:
    with (folder.root / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_zero3_with_offload_trains_what_one_process_does(trained, tmp_path):
    few = ("stage.steps=2", "callbacks.samples.every_steps=0")
    two = ("trainer=deepspeed_zero3_offload", "trainer.devices=2", "trainer.accelerator=cpu")
    assert train_in_a_process(tmp_path / "two", "stage=align", *few, *two) == 0
    found = losses(StageFolder(tmp_path / "two" / "runs" / "toy" / "align"))
    assert found == pytest.approx(losses(trained("align", *few)), rel=0.02)
