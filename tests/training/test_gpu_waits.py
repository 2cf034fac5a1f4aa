"""In a step on a GPU the host waits for the device at named places alone: torch reports every wait."""

import traceback
import warnings
from pathlib import Path

import pytest
import torch
import toy

import vita_audio_pl
from vita_audio_pl.training.step.module import SpeechLMModule

SOURCE = str(Path(vita_audio_pl.__file__).parent)
NAMED = {
    ("module.py", "configure_gradient_clipping"),  # whether the gradient norm is finite decides about the update
    ("guard.py", "on_train_batch_end"),  # the same number again, which has come by then
}


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["vita_audio_boost", "vita_audio_plus_boost"])
@pytest.mark.parametrize("stage", ["align", "mtp10", "sft"])
def test_the_host_waits_for_the_gpu_where_it_is_named(stage, variant, trained, tmp_path, monkeypatch):
    waits: list[tuple[str, str]] = []
    begin = SpeechLMModule.on_train_batch_start

    def begins(module, batch, batch_idx):  # neither the first steps, which set up kernels, nor the last, which saves
        torch.cuda.set_sync_debug_mode("warn" if 2 <= module.trainer.global_step < 5 else "default")
        begin(module, batch, batch_idx)

    def noted(message, *_, **__):
        if "synchronizing CUDA operation" in str(message):
            stack = traceback.extract_stack()
            own = [frame for frame in stack if frame.filename.startswith(SOURCE)][-1]
            waits.append((Path(own.filename).name, own.name))
            if waits[-1] not in NAMED:
                print("".join(traceback.format_list(stack[-6:])))

    monkeypatch.setattr(SpeechLMModule, "on_train_batch_start", begins)
    encoder = f"encoder.folder={toy.toy_encoder(tmp_path / 'encoder')}"
    alone = (f"variant.parents.{stage}=[]", "callbacks.save_every=6", "callbacks.log_every=6")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = noted
        try:
            trained(stage, "trainer=gpu", f"variant={variant}", encoder, *alone)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert waits and set(waits) <= NAMED, sorted(set(waits) - NAMED)
