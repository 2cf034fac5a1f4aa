"""Canonical checkpoints: whole tensors by parameter name, whatever engine and number of ranks wrote them.

`step-<n>.ckpt/` holds `part-<r>.safetensors` (weights and AdamW's moments of the parameters that train, dealt out over the
ranks), `rng-<r>.json` and `state.json`, which is written last. Frozen weights are not in it: they come from the parent.
"""

import errno
import json
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import lightning as L
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.engines.base import MOMENTS, Engine
from vita_audio_pl.training.loop_progress import set_progress
from vita_audio_pl.training.rng import restore_rng_state, rng_state

if TYPE_CHECKING:
    from vita_audio_pl.training.local_checkpoints import LocalCheckpoints

STATE = "state.json"
WEIGHT = "weight"
ASIDE = ".tmp"
BEST = "best.json"
LAUNCH = "launch"
FORMAT = 1
_NAME = re.compile(r"step-(\d+)\.ckpt")
_WAIT_FOR_RANKS = 1800.0
_BLOCK = 16 * 2**20  # bytes copied at a time


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def latest_for_all(trainer: L.Trainer, folder: Path) -> Path | None:
    """The newest complete checkpoint that rank 0 sees; ranks never choose each for itself. Collective."""
    newest: Path | None = trainer.strategy.broadcast(next(reversed(complete_checkpoints(folder)), None))
    return newest


def checkpoint_name(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:08d}.ckpt"


def step_of(checkpoint: Path) -> int:
    """Optimiser steps done when the checkpoint was written."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise UserError(f"{checkpoint} is not a checkpoint: its name is not step-<number>.ckpt")
    return int(match.group(1))


def best_checkpoint(folder: Path) -> dict[str, Any] | None:
    """`step`, `metric` and `value` of the best checkpoint so far; None where none was chosen."""
    path = folder / BEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class CheckpointWriter:
    """Takes a copy of what trains and writes it in the background.

    Every rank writes its part under a name aside; rank 0 waits for all parts, then renames the folder, so what carries
    the name is whole. A kill at any moment leaves the last good checkpoint. With `local`, ranks write to their node's own
    disk first, and copy their parts from there while the next checkpoint may be written.

    Args:
        folder: of the stage's checkpoints, seen by all nodes.
        engine: that the model trains under.
        keep: last checkpoints kept, beside the best.
        local: checkpoints on the nodes' own disks.
    """

    def __init__(self, folder: Path, engine: Engine, keep: int, local: "LocalCheckpoints | None" = None) -> None:
        self.folder, self.engine, self.keep, self.local = folder, engine, keep, local
        self.stalled = 0.0  # seconds that training has waited for checkpoints
        self._threads: deque[threading.Thread] = deque()
        self._latest: Path | None = None
        self._failure: OSError | SafetensorError | None = None
        self._given_up = threading.Event()  # another rank's part will never come

    def prepare(self, trainer: L.Trainer) -> None:
        """Remove what killed writers left, and bring home what they had only written locally. Collective."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(f"*{ASIDE}"):
                shutil.rmtree(leftover)
        trainer.strategy.barrier("leftovers are gone")
        if self.local is not None:
            self.local.open(trainer)
            self.local.bring_home(trainer)

    def save(self, trainer: L.Trainer, model: torch.nn.Module, state: Mapping[str, Any]) -> None:
        """Copy weights and moments to host memory, then write them while training goes on. Collective.

        Raises:
            UserError: the checkpoint before this one could not be written.
        """
        started = time.perf_counter()
        self._join(leave=0 if self.local is None else 1)  # one may still be copied while the next is written
        self._raise_failure()
        path = self.folder / checkpoint_name(trainer.global_step)
        if path != self._latest and not path.exists():
            self._latest = path
            tensors = self._gather(trainer, model)
            facts = {"format": FORMAT, "step": trainer.global_step, "ranks": trainer.world_size, **state}
            place = _Place(trainer.global_rank, trainer.world_size, trainer.local_rank == 0, trainer.num_devices)
            before = self._threads[-1] if self._threads else None
            job = (path, tensors, rng_state(), facts, place, before)
            thread = threading.Thread(target=self._write, args=job, name="checkpoint writer", daemon=True)
            self._threads.append(thread)
            thread.start()
        self.stalled += time.perf_counter() - started

    def finish(self, failed_elsewhere: bool = False) -> None:
        """Wait until the last checkpoint is on disk.

        Args:
            failed_elsewhere: another rank could not write its part, so this one has to stop, too.

        Raises:
            UserError: it could not be written; the one before it is still there.
        """
        if failed_elsewhere:
            self._given_up.set()
        self._join(leave=0)
        self._raise_failure(failed_elsewhere)

    def end(self, trainer: L.Trainer) -> None:
        """Wait for the last checkpoint; when the stage is over, the nodes' own disks are cleared.

        Raises:
            UserError: as `finish`.
        """
        self.finish()
        if self.local is not None and trainer.global_step >= trainer.max_steps:
            trainer.strategy.barrier("the last checkpoint is home")
            if trainer.local_rank == 0:
                self.local.drop()

    def _join(self, leave: int) -> None:
        while len(self._threads) > leave:
            self._threads.popleft().join()

    def _raise_failure(self, failed_elsewhere: bool = False) -> None:
        if self._failure is None and not failed_elsewhere:
            return
        failure, self._failure = self._failure or OSError("another rank could not write its part"), None
        kept = complete_checkpoints(self.folder)
        good = f"the last good one is {kept[-1]}" if kept else "there is no earlier one"
        full = isinstance(failure, OSError) and failure.errno == errno.ENOSPC
        why = "the disk is full" if full or "No space left" in str(failure) else str(failure)
        where = f"{self.folder}" if self.local is None else f"{self.local.folder} and then {self.folder}"
        raise UserError(f"a checkpoint could not be written to {where}: {why}; {good}; make room and run again")

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Keep the checkpoint of `step`, which is on disk, as the best by `metric`; rank 0 calls it."""
        aside = self.folder / f"{BEST}.part"
        aside.write_text(json.dumps({"step": step, "metric": metric, "value": value}) + "\n", encoding="utf-8")
        os.replace(aside, self.folder / BEST)

    @property
    def failed(self) -> bool:
        """Whether the last write has failed, as far as is known without waiting."""
        return self._failure is not None

    def _gather(self, trainer: L.Trainer, model: torch.nn.Module) -> dict[str, Tensor]:
        """This rank's share of whole tensors, in host memory."""
        optimizer = trainer.optimizers[0]
        share: dict[str, Tensor] = {}
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        for number, (name, parameter) in enumerate(trained):
            whole = {WEIGHT: self.engine.weight(parameter), **self.engine.moments(optimizer, parameter)}
            if number % trainer.world_size == trainer.global_rank:
                share |= {f"{kind}/{name}": _host_copy(value) for kind, value in whole.items()}
        return share

    def _write(
        self,
        path: Path,
        tensors: dict[str, Tensor],
        rng: dict,
        facts: dict[str, Any],
        place: "_Place",
        before: threading.Thread | None,
    ) -> None:
        aside = path.with_name(path.name + ASIDE)
        try:
            if self.local is None:
                _write_part(aside, place.rank, tensors, rng)
            else:
                facts = {**facts, LAUNCH: self.local.launch}
                self._write_locally(path.name, tensors, rng, facts, place, aside, before)
            (aside / f"rank-{place.rank:05d}.done").touch()
            if place.rank == 0:
                self._complete(path, aside, facts, place.ranks)
                self._prune()
            if self.local is not None and place.leads_node:
                self.local.prune()
        except (OSError, SafetensorError) as error:
            self._failure = error
            if place.rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
            if self.local is not None and place.leads_node:
                shutil.rmtree(self.local.folder / aside.name, ignore_errors=True)

    def _write_locally(
        self,
        name: str,
        tensors: dict[str, Tensor],
        rng: dict,
        facts: dict[str, Any],
        place: "_Place",
        aside: Path,
        before: threading.Thread | None,
    ) -> None:
        """This rank's part to the node's disk, then from there to `aside`, after the checkpoint before it."""
        assert self.local is not None
        here = self.local.folder / f"{name}{ASIDE}"
        # opened before the folder gets its name, so that neither this nor its removal can come between
        opened = {file.name: file.open("rb") for file in _write_part(here, place.rank, tensors, rng)}
        tensors.clear()
        (here / f"rank-{place.rank:05d}.done").touch()
        if place.leads_node:
            self._complete(self.local.folder / name, here, facts, place.ranks_on_node)
        if before is not None:
            before.join()
        aside.mkdir(parents=True, exist_ok=True)
        for file, source in opened.items():
            copy_open_file(source, aside / file)

    def _complete(self, path: Path, aside: Path, facts: dict[str, Any], ranks: int) -> None:
        """Give a folder its name when all `ranks` have written their parts into it."""
        deadline = time.monotonic() + _WAIT_FOR_RANKS
        while len(list(aside.glob("rank-*.done"))) < ranks:
            if self._given_up.is_set():
                raise OSError("another rank could not write its part")
            if time.monotonic() > deadline:
                raise OSError(f"not all of {ranks} ranks wrote their part within {_WAIT_FOR_RANKS:.0f} s")
            time.sleep(0.01)
        (aside / STATE).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        flush(aside / STATE)
        os.replace(aside, path)

    def _prune(self) -> None:
        best = best_checkpoint(self.folder)
        for old in complete_checkpoints(self.folder)[: -self.keep]:
            if best is None or step_of(old) != best["step"]:
                shutil.rmtree(old)


@dataclass(frozen=True)
class _Place:
    """Where a rank stands: its number among all, whether it leads its node, and how many are on it."""

    rank: int
    ranks: int
    leads_node: bool
    ranks_on_node: int


def _write_part(aside: Path, rank: int, tensors: dict[str, Tensor], rng: dict) -> list[Path]:
    """One rank's files, on the disk."""
    aside.mkdir(parents=True, exist_ok=True)
    part, random = aside / f"part-{rank:05d}.safetensors", aside / f"rng-{rank:05d}.json"
    save_file(tensors, part)
    random.write_text(json.dumps(rng), encoding="utf-8")
    flush(part)
    return [part, random]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint.

    Raises:
        UserError: it cannot be read.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the checkpoint {checkpoint} cannot be read ({error}); delete it to go on from the one before"
        ) from (error)
    if state.get("format") != FORMAT:
        raise UserError(f"the checkpoint {checkpoint} has format {state.get('format')}; this version reads {FORMAT}")
    return state


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
                moments = {
                    kind: parts.get(f"{kind}/{name}", parameter) for kind in MOMENTS if f"{kind}/{name}" in parts
                }
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


def _host_copy(value: Tensor) -> Tensor:
    copy = torch.empty(value.shape, dtype=value.dtype)
    return copy.copy_(value)


def copy_open_file(source: BinaryIO, target: Path) -> None:
    """Copy and close a file, and force the copy onto its disk."""
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file, _BLOCK)
    flush(target)


def flush(path: Path) -> None:
    """Force a file onto the disk before the rename can be seen."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
