"""The update that runs on GPUs, here on the CPU: it trains the same, and goes on from a checkpoint."""

import shutil

import torch
from safetensors.torch import load_file

from vita_audio_pl.storage.owned import MARK
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.run_folder.layout import StageFolder

PRECISION = "trainer.precision=bf16-mixed"


def weights(folder: StageFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.model / "model.safetensors")


def test_the_fused_update_trains_the_same_and_goes_on_from_a_checkpoint(trained, monkeypatch, tmp_path):
    expected = weights(trained("align", "run_name=plain", PRECISION))
    monkeypatch.setattr(Engine, "fused", True)
    whole = trained("align", "run_name=fused", PRECISION, "callbacks.save_every=3", "callbacks.keep_last=9")
    checkpoint = whole.checkpoints / "step-00000003.ckpt"
    folder = tmp_path / "runs" / "resumed" / "align"
    shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name)
    shutil.copy(checkpoint.parents[1] / MARK, folder / MARK)  # without it the folder would not be ours
    resumed = weights(trained("align", "run_name=resumed", PRECISION))
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
