"""Activation checkpointing and compilation, block by block."""

from collections.abc import Iterator
from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.speech_lm import SpeechLM

CHECKPOINTED = ("none", "backbone", "heads", "all")


def blocks(model: SpeechLM, which: str = "all") -> Iterator[GradientCheckpointingLayer]:
    """The decoder layers of the backbone followed by the heads, or only one of the two.

    Args:
        which: `none`, `backbone`, `heads` or `all`.

    Raises:
        UserError: `which` is another word.
    """
    if which not in CHECKPOINTED:
        raise UserError(f"'{which}' names no blocks of the model; use one of {', '.join(CHECKPOINTED)}")
    if which in ("backbone", "all"):
        yield from model.backbone_layers
    if which in ("heads", "all"):
        yield from model.heads


def checkpoint_activations(model: SpeechLM, which: str, every: int = 1) -> None:
    """Activation checkpointing: keep only the inputs of some blocks and recompute the rest in the backward pass.

    A frozen backbone runs without a graph and is not affected.

    Args:
        which: `none`, `backbone`, `heads` or `all`.
        every: checkpoint the first of these blocks and every `every`-th after it.

    Raises:
        UserError: `which` is another word, or `every` is below 1.
    """
    if every < 1:
        raise UserError(f"activation checkpointing of every {every}-th block is not possible; use 1 or more")
    chosen = {id(block) for block in list(blocks(model, which))[::every]}
    for block in blocks(model):
        block.gradient_checkpointing = id(block) in chosen
        function = partial(checkpoint, use_reentrant=False)
        block._gradient_checkpointing_func = function  # type: ignore[assignment]  # transformers does not declare it


def compile_blocks(model: SpeechLM, which: str = "all", backend: str = "inductor") -> None:
    """Compile blocks one by one with `torch.compile` and dynamic row lengths; attention is left out of the graph.

    Args:
        which: `none`, `backbone`, `heads` or `all`.
        backend: backend of `torch.compile`.

    Raises:
        UserError: `which` is another word.
    """
    for block in blocks(model, which):
        block.compile(dynamic=True, backend=backend)
