"""How the blocks are run: which are recomputed in the backward pass, which are compiled."""

from collections.abc import Iterator
from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.speech_lm import SpeechLM

CHECKPOINTED = ("none", "backbone", "heads", "all")


def blocks(model: SpeechLM, which: str = "all") -> Iterator[GradientCheckpointingLayer]:
    """Decoder layers of the backbone, then heads; or one kind alone.

    Args:
        which: `none`, `backbone`, `heads` or `all`.

    Raises:
        UserError: another word.
    """
    if which not in CHECKPOINTED:
        raise UserError(f"'{which}' names no blocks of the model; use one of {', '.join(CHECKPOINTED)}")
    if which in ("backbone", "all"):
        yield from model.backbone_layers
    if which in ("heads", "all"):
        yield from model.heads


def checkpoint_activations(model: SpeechLM, which: str, every: int = 1) -> None:
    """Keeps only the inputs of some blocks while training and computes the rest again in the backward pass.

    A frozen backbone keeps nothing anyway.

    Args:
        which: `none`, `backbone`, `heads` or `all`.
        every: of these blocks, the first and every `every`-th after it.

    Raises:
        UserError: another word for `which`, or `every` below 1.
    """
    if every < 1:
        raise UserError(f"activation checkpointing of every {every}-th block is not possible; use 1 or more")
    chosen = {id(block) for block in list(blocks(model, which))[::every]}
    for block in blocks(model):
        block.gradient_checkpointing = id(block) in chosen
        function = partial(checkpoint, use_reentrant=False)
        block._gradient_checkpointing_func = function  # type: ignore[assignment]  # transformers does not declare it


def compile_blocks(model: SpeechLM, which: str = "all", backend: str = "inductor") -> None:
    """Compiles blocks one by one with `torch.compile`, for rows of any length; attention stays as it is.

    Args:
        which: `none`, `backbone`, `heads` or `all`.
        backend: of `torch.compile`.

    Raises:
        UserError: another word for `which`.
    """
    for block in blocks(model, which):
        block.compile(dynamic=True, backend=backend)
