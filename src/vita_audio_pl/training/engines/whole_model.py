"""The model in training as one plain model on one rank, for any engine."""

import copy

import torch
from torch import Tensor, nn

from vita_audio_pl.models.lora import add_lora, merged_parameters
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.settings import LoraConfig


def whole_weights(model: nn.Module, engine: Engine, keep: bool, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Current values of all parameters by name, in host memory, on ranks with `keep`; empty on others. Collective.

    One parameter is gathered at a time. On a CPU with the whole model these are the parameters themselves, not copies.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        whole = engine.weight(parameter)
        if keep:
            weights[name] = whole.to("cpu", dtype)
    return weights


def plain_model(config: SpeechLMConfig, lora: LoraConfig, weights: dict[str, Tensor], device: torch.device) -> SpeechLM:
    """A model in evaluation mode with `weights`, adapters merged.

    Args:
        config: configuration of the model that the weights come from.
        weights: from `whole_weights`, by name; not copied if they are on `device` already.
    """
    if lora.rank:
        adapted = SpeechLM.on_meta(copy.deepcopy(config))
        add_lora(adapted, lora.rank, lora.alpha, 0.0, lora.targets, lora.only)
        weights = merged_parameters(_filled(adapted, weights, torch.device("cpu")))
    return _filled(SpeechLM.on_meta(copy.deepcopy(config)), weights, device).eval()


def _filled(model: SpeechLM, weights: dict[str, Tensor], device: torch.device) -> SpeechLM:
    for name, value in weights.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, nn.Parameter(value.to(device), requires_grad=False))
    return model.materialised(device)
