"""A run put back where a checkpoint left it, under any engine and number of ranks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.training.checkpoints.folders import checkpoints, move_aside
from vita_audio_pl.training.checkpoints.loop_progress import set_progress
from vita_audio_pl.training.checkpoints.parts import (
    Checkpoint,
    open_checkpoint,
    rng_name,
    shares,
    this_ranks_share,
)
from vita_audio_pl.training.checkpoints.rng import restore_rng_state
from vita_audio_pl.training.engines.base import AVERAGE, WEIGHT, Engine, trained_parameters, whole_shape


def newest_usable(
    trainer: L.Trainer, folder: Path, *kinds: str, read: Callable[[Checkpoint], object] | None = None
) -> Checkpoint | None:
    """The newest checkpoint of these kinds that can be read; None where there is none. Collective.

    Rank 0 looks for all: ranks never choose each for itself. Newer ones that are damaged are set apart, and it is said.

    Args:
        read: what this rank reads of the parts, which else are not read; raises ValueError where it meets damage.

    Raises:
        UserError: the newest has the format of another version, or is of another model, or cannot be read or set apart now.
    """
    while True:
        found: Checkpoint | UserError | None = trainer.strategy.broadcast(
            _look(folder, kinds) if trainer.is_global_zero else None
        )
        if isinstance(found, UserError):
            raise found
        if found is None or read is None:
            return found
        damages = _of_all_ranks(trainer, _try(read, found))
        for refusal in damages:
            if isinstance(refusal, UserError):
                raise refusal
        damage = next(filter(None, damages), None)
        if damage is None:
            return found
        if trainer.is_global_zero:
            _reject(found.path, str(damage))
        trainer.strategy.barrier("the damaged checkpoint is set apart")


def restore_newest(
    trainer: L.Trainer, folder: Path, *kinds: str, model: torch.nn.Module, engine: Engine
) -> Checkpoint | None:
    """Overwrite weights and moments with those of the newest checkpoint whose bytes are in order. Collective.

    Each rank reads what it holds. What ranks hold in common they read in equal shares, and send to each other.

    Returns:
        The checkpoint; None where there is none, and weights and moments are then not to be used.

    Raises:
        UserError: as `newest_usable`.
    """
    optimizer = trainer.optimizers[0]

    def read(checkpoint: Checkpoint) -> None:
        kinds_of = _kinds(checkpoint, model)
        moments = {name: [kind for kind in kinds if kind not in (WEIGHT, AVERAGE)] for name, kinds in kinds_of.items()}
        engine.expect(model, optimizer, moments, checkpoint.step)
        held = engine.held(model, optimizer)
        wanted = []
        with torch.no_grad():
            for name, cut in this_ranks_share(engine, held).items():
                for kind in held[name].tensors.keys() & {WEIGHT, *kinds_of[name]}:
                    wanted.append((f"{kind}/{name}", held[name].start + cut.start, held[name].tensors[kind][cut]))
            checkpoint.read(wanted)

    found = newest_usable(trainer, folder, *kinds, read=read)
    if found is not None:
        _exchange(engine, model, optimizer)
        engine.overwritten(optimizer)
    return found


def resume(checkpoint: Checkpoint, trainer: L.Trainer) -> list[dict[str, Any]]:
    """Put progress and, under as many ranks, random generators where they were.

    Returns:
        What ranks kept for themselves: this one, under as many ranks; else on rank 0 all, and on the others none.
    """
    set_progress(trainer, checkpoint.step, trainer.accumulate_grad_batches)
    wrote: int = checkpoint.state["ranks"]
    ranks = range(wrote) if trainer.is_global_zero else range(0)
    if wrote == trainer.world_size:
        ranks = range(trainer.global_rank, trainer.global_rank + 1)
    kept = [json.loads((checkpoint.path / rng_name(rank)).read_text(encoding="utf-8")) for rank in ranks]
    if wrote == trainer.world_size:
        restore_rng_state(kept[0])
    return kept


def _look(folder: Path, kinds: tuple[str, ...]) -> Checkpoint | UserError | None:
    try:
        for checkpoint in reversed(checkpoints(folder, *kinds)):
            try:
                return open_checkpoint(checkpoint)
            except ValueError as damage:
                _reject(checkpoint, str(damage))
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f"the checkpoints in {folder} cannot be listed: {error}")
    return None


def _reject(checkpoint: Path, why: str) -> None:
    print(f"{checkpoint.name} is damaged: {why}; it is kept as {move_aside(checkpoint, why)}", flush=True)


def _try(read: Callable[[Checkpoint], object], checkpoint: Checkpoint) -> str | UserError | None:
    """What was wrong on this rank."""
    try:
        read(checkpoint)
    except UserError as error:
        return error
    except (OSError, ValueError) as error:
        if is_machine_fault(error):
            return UserError(f"the checkpoint {checkpoint.path} cannot be read now: {error}")
        return str(error)
    return None


def _of_all_ranks(trainer: L.Trainer, value: Any) -> list[Any]:
    values = [value]
    if trainer.world_size > 1:
        values = [None] * trainer.world_size
        dist.all_gather_object(values, value)
    return values


def _kinds(checkpoint: Checkpoint, model: torch.nn.Module) -> dict[str, list[str]]:
    """What is stored of each parameter that trains.

    Raises:
        UserError: the checkpoint is of a model with other trained parameters.
    """
    shapes = checkpoint.state["shapes"]
    for name, parameter in trained_parameters(model):
        shape = whole_shape(parameter)
        if name not in shapes:
            raise UserError(f"the checkpoint {checkpoint.path} has no '{name}': it is of another model")
        if tuple(shapes[name]) != shape:
            raise UserError(
                f"the checkpoint {checkpoint.path} has '{name}' as {tuple(shapes[name])}, the model as {shape}"
            )
    kinds = checkpoint.kinds()
    return {name: kinds.get(name, []) for name, _ in trained_parameters(model)}


def _exchange(engine: Engine, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Send what each rank has read to the ranks that hold the same."""
    group = engine.copies
    if group is None:
        return
    held = engine.held(model, optimizer)
    for owner, share in enumerate(shares(held, dist.get_world_size(group))):
        source = dist.get_global_rank(group, owner)
        for name, cut in share.items():
            for value in held[name].tensors.values() if cut.stop > cut.start else ():
                dist.broadcast(value[cut], source, group=group)
