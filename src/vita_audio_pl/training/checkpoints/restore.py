"""A run put back where a checkpoint left it, under any engine and number of ranks."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.checkpoints.folders import (
    WEIGHT,
    WITHOUT_CHECKSUMS,
    checkpoints,
    damage,
    read_state,
    set_apart,
)
from vita_audio_pl.training.checkpoints.loop_progress import set_progress
from vita_audio_pl.training.checkpoints.rng import restore_rng_state
from vita_audio_pl.training.engines.base import Engine


def newest_usable(trainer: L.Trainer, folder: Path, *kinds: str) -> Path | None:
    """The newest checkpoint of these kinds that can be read; None where there is none. Collective.

    Rank 0 looks for all: ranks never choose each for itself. Newer ones that are damaged are set apart, and it is said.

    Raises:
        UserError: the newest has the format of another version, or cannot be set apart.
    """
    found: Path | UserError | None = trainer.strategy.broadcast(
        _look(folder, kinds) if trainer.is_global_zero else None
    )
    if isinstance(found, UserError):
        raise found
    return found


def _look(folder: Path, kinds: tuple[str, ...]) -> Path | UserError | None:
    try:
        for checkpoint in reversed(checkpoints(folder, *kinds)):
            why = damage(checkpoint)
            if why is None:
                if read_state(checkpoint)["format"] == WITHOUT_CHECKSUMS:
                    print(f"{checkpoint.name} was written by an older version, without checksums to verify", flush=True)
                return checkpoint
            print(f"{checkpoint.name} is damaged: {why}; it is kept as {set_apart(checkpoint, why)}", flush=True)
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f"the checkpoints in {folder} cannot be looked through: {error}")
    return None


def restore(checkpoint: Path, trainer: L.Trainer, model: torch.nn.Module, engine: Engine) -> dict[str, Any]:
    """Put weights, moments, progress and random generators where they were; any engine and number of ranks. Collective.

    Returns:
        `state.json`, with what was given to `save`.

    Raises:
        UserError: the checkpoint is damaged, or of a model with other trained parameters.
    """
    state = read_state(checkpoint)
    restore_tensors(checkpoint, trainer, model, engine, int(state["step"]))
    set_progress(trainer, int(state["step"]), trainer.accumulate_grad_batches)
    rng = checkpoint / f"rng-{trainer.global_rank:05d}.json"
    if state["ranks"] == trainer.world_size:
        restore_rng_state(json.loads(rng.read_text(encoding="utf-8")))
    return state


def restore_tensors(checkpoint: Path, trainer: L.Trainer, model: torch.nn.Module, engine: Engine, step: int) -> None:
    """Overwrite weights and moments alone."""
    optimizer = trainer.optimizers[0]
    with _Parts(checkpoint) as parts:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                engine.load_weight(parameter, parts.get(f"{WEIGHT}/{name}", parameter))
                moments = {kind: parts.get(f"{kind}/{name}", parameter) for kind in parts.kinds(name) if kind != WEIGHT}
                if moments:
                    engine.load_moments(optimizer, parameter, moments, step)


class _Parts:
    """All tensors of a checkpoint's parts, read one at a time."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        try:
            self._files = [safe_open(part, "pt") for part in sorted(checkpoint.glob("part-*.safetensors"))]
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"the checkpoint {checkpoint} is damaged ({error}); delete it to go on from the one before"
            ) from (error)
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __enter__(self) -> "_Parts":
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.clear()
        self._where.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def kinds(self, name: str) -> list[str]:
        """What is stored of a parameter: its weight, and moments by the names that its optimiser gives them."""
        return sorted(kind for kind, _, of in (key.partition("/") for key in self._where) if of == name)

    def get(self, name: str, like: Tensor) -> Tensor:
        """A tensor by name, refused where it is missing or of another shape than the whole of `like`."""
        shape = tuple(getattr(like, "ds_shape", like.shape))
        if name not in self._where:
            raise UserError(f"the checkpoint {self._checkpoint} has no '{name}': it is of another model")
        value: Tensor = self._where[name].get_tensor(name)
        if tuple(value.shape) != shape:
            raise UserError(
                f"the checkpoint {self._checkpoint} has '{name}' as {tuple(value.shape)}, the model as {shape}"
            )
        return value
