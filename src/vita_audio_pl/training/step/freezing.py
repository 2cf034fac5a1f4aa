"""Freezing parameters by regular expression, and the fingerprints that verify it.

Lightning's `BaseFinetuning` is not used: it raises under DeepSpeed, and its optimiser filter compares parameters by
value, so a head copied from its neighbour would be taken for a parameter that is already in the optimiser.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.lora import BESIDE_ADAPTERS
from vita_audio_pl.models.speech_input import ENCODER

BUNCH = 8
"""Names listed in a message before `and N more`."""


@dataclass(frozen=True)
class Frozen:
    """Summary of freezing: `tensors` and `parameters` (their elements) per pattern, and the totals."""

    by_pattern: dict[str, int] = field(default_factory=dict)
    frozen_parameters: int = 0
    trained_parameters: int = 0


def freeze(model: nn.Module, patterns: Sequence[str], *, train_encoder: bool = False) -> Frozen:
    """Freeze parameters whose name matches a pattern (`re.search`); all others train.

    A tied parameter is frozen if any of its names matches. Layers with LoRA adapters train only these; the speech
    encoder trains only with `train_encoder`.

    Raises:
        UserError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    by_pattern = {pattern: sum(bool(re.search(pattern, name)) for name in names) for pattern in patterns}
    for pattern, count in by_pattern.items():
        if count == 0:
            raise UserError(
                f"stage.freeze: the pattern '{pattern}' matches no parameter; the model has {bunch(top_levels(names))}"
            )
    patterns = [*patterns, *([] if train_encoder else [ENCODER])]
    if any(".lora_" in name for name in names):
        patterns.append(BESIDE_ADAPTERS)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if any(re.search(pattern, name) for pattern in patterns):
            parameter.requires_grad_(False)
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    if sizes[True] == 0:
        raise UserError("stage.freeze leaves nothing to train; remove a pattern, or give the stage heads")
    return Frozen(by_pattern, frozen_parameters=sizes[False], trained_parameters=sizes[True])


def fingerprint(value: Tensor) -> str:
    """Hash of a tensor's bytes (32 hex digits)."""
    flat = value.detach().cpu().contiguous().flatten()
    return hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).hexdigest()


def top_levels(names: Sequence[str]) -> list[str]:
    """Unique first components of dotted names, in order."""
    return list(dict.fromkeys(name.split(".")[0] for name in names))


def bunch(names: Sequence[str]) -> str:
    """Names for a message, cut to a readable number."""
    more = f" and {len(names) - BUNCH} more" if len(names) > BUNCH else ""
    return ", ".join(names[:BUNCH]) + more
