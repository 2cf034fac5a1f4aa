"""What a process of a training run can tell of its optimiser and its gradients, as `probe.rank-<r>.json`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loops import training_epoch_loop
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.training.callbacks import training_check
from vita_audio_pl.training.callbacks.sample_writer import AnsweredSamples, SampleWriter
from vita_audio_pl.training.step.module import SpeechLMModule


def keep_answering_weights(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Makes every model that answers prompts leave its weights beside its metrics, as `answering-<step>.safetensors`."""
    answer = SampleWriter.answer

    def kept(self: SampleWriter, model: SpeechLM, step: int, device: torch.device) -> AnsweredSamples:
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        save_file(weights, self.folder.parent / f"answering-{step:06d}.safetensors")
        return answer(self, model, step, device)

    set_attribute(SampleWriter, "answer", kept)


def install() -> None:
    """Makes every training of this process leave both files beside its metrics."""
    keep_answering_weights(setattr)
    with_gradient: set[str] = set()
    hashed: list[int] = []
    fingerprint = training_check.fingerprint

    def counted(value: Any) -> str:
        hashed.append(value.numel())
        return fingerprint(value)

    training_check.fingerprint = counted
    asked: list[str] = []
    broadcast = torch.distributed.broadcast

    def told(*args: Any, **kwargs: Any) -> Any:
        caller = Path(sys._getframe(1).f_code.co_filename).name
        if caller == Path(training_epoch_loop.__file__).name:
            asked.append(caller)
        return broadcast(*args, **kwargs)

    torch.distributed.broadcast = told

    def on_after_backward(self: SpeechLMModule) -> None:
        for name, parameter in self.speech_lm.named_parameters():
            if not parameter.requires_grad and parameter.grad is not None:
                with_gradient.add(name)

    def on_train_end(self: SpeechLMModule) -> None:
        optimizer: Any = self.trainer.optimizers[0]
        inner = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed's has ours inside
        facts = {
            "frozen_with_gradient": sorted(with_gradient),
            "groups": {g["name"]: [g["peak_lr"], g["weight_decay"]] for g in optimizer.param_groups},
            "hashed": len(hashed),
            "asked_by_lightning": len(asked),
            "elements_with_moments": sum(local(state["exp_avg"]).numel() for state in inner.state.values()),
        }
        if hasattr(optimizer, "gradient_accumulation_dtype"):  # DeepSpeed
            facts["accumulates_in"] = str(optimizer.gradient_accumulation_dtype)
        if hasattr(optimizer, "single_partition_of_fp32_groups"):  # ZeRO-2
            sizes = [partition.numel() for partition in optimizer.single_partition_of_fp32_groups]
            facts["elements"] = dict(zip(facts["groups"], sizes, strict=True))
        path = self.trainer.loggers[0].path.parent / f"probe.rank-{self.trainer.global_rank}.json"
        path.write_text(json.dumps(facts))

    SpeechLMModule.on_after_backward = on_after_backward
    SpeechLMModule.on_train_end = on_train_end


def local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value
