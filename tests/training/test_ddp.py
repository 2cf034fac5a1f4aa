"""Two gloo processes on the CPU train what one does."""

import csv

import pytest
import torch
from safetensors.torch import load_file
from toy_process import train_in_a_process

from vita_audio_pl.training.run_folder import StageFolder

DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")


def losses(folder: StageFolder) -> list[float]:
    with (folder.root / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.timeout(300)
def test_two_processes_train_what_one_does(tmp_path):
    """Each stage's loss and weights, with accumulation, at the same global batch; the divisor is global."""
    for stage in ("align", "mtp1"):
        one, two = (StageFolder(tmp_path / name / "runs" / "toy" / stage) for name in ("one", "two"))
        assert train_in_a_process(tmp_path / "one", f"stage={stage}", "trainer.rows_per_device=4") == 0
        assert train_in_a_process(tmp_path / "two", f"stage={stage}", *DDP) == 0
        assert losses(one) == pytest.approx(losses(two), rel=1e-4)
        weights = [load_file(folder.model / "model.safetensors") for folder in (one, two)]
        for name, value in weights[0].items():
            torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)
