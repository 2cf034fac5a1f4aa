"""Checkpoints are written while training goes on, and get their name only when they are whole."""

import errno
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.checkpoints import (
    ASIDE,
    BEST,
    FORMAT,
    LAUNCH,
    STATE,
    WEIGHT,
    best_checkpoint,
    checkpoint_name,
    complete_checkpoints,
    copy_open_file,
    flush,
    step_of,
)
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.local_checkpoints import LocalCheckpoints
from vita_audio_pl.training.rng import rng_state

_WAIT_FOR_RANKS = 1800.0


@dataclass(frozen=True)
class _Place:
    """Where a rank stands: its number among all, whether it leads its node, and how many are on it."""

    rank: int
    ranks: int
    leads_node: bool
    ranks_on_node: int


@dataclass(frozen=True)
class _Save:
    """One checkpoint as a rank writes it, in a thread of its own after that of the checkpoint `before`."""

    name: str
    tensors: dict[str, Tensor]
    rng: dict[str, Any]
    facts: dict[str, Any]
    place: _Place
    before: threading.Thread | None

    @property
    def aside(self) -> str:
        """The folder's name until it is whole."""
        return self.name + ASIDE


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

    def __init__(self, folder: Path, engine: Engine, keep: int, local: LocalCheckpoints | None = None) -> None:
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
            save = _Save(path.name, tensors, rng_state(), facts, place, before)
            thread = threading.Thread(target=self._write, args=(save,), name="checkpoint writer", daemon=True)
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

    def _write(self, save: _Save) -> None:
        aside, rank = self.folder / save.aside, save.place.rank
        try:
            if self.local is None:
                _write_part(aside, save)
                facts = save.facts
            else:
                facts = {**save.facts, LAUNCH: self.local.launch}
                self._write_locally(self.local, aside, save, facts)
            (aside / f"rank-{rank:05d}.done").touch()
            if rank == 0:
                self._complete(aside, self.folder / save.name, facts, save.place.ranks)
                self._prune()
            if self.local is not None and save.place.leads_node:
                self.local.prune()
        except (OSError, SafetensorError) as error:
            self._failure = error
            if rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
            if self.local is not None and save.place.leads_node:
                shutil.rmtree(self.local.folder / save.aside, ignore_errors=True)

    def _write_locally(self, local: LocalCheckpoints, aside: Path, save: _Save, facts: dict[str, Any]) -> None:
        """This rank's part to the node's disk, then from there to `aside`, after the checkpoint before it."""
        here = local.folder / save.aside
        # opened before the folder gets its name, so that neither this nor its removal can come between
        opened = {file.name: file.open("rb") for file in _write_part(here, save)}
        save.tensors.clear()
        (here / f"rank-{save.place.rank:05d}.done").touch()
        if save.place.leads_node:
            self._complete(here, local.folder / save.name, facts, save.place.ranks_on_node)
        if save.before is not None:
            save.before.join()
        aside.mkdir(parents=True, exist_ok=True)
        for file, source in opened.items():
            copy_open_file(source, aside / file)

    def _complete(self, aside: Path, path: Path, facts: dict[str, Any], ranks: int) -> None:
        """Give the folder `aside` its name when all `ranks` have written their parts into it."""
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


def _write_part(aside: Path, save: _Save) -> list[Path]:
    """One rank's files, on the disk."""
    aside.mkdir(parents=True, exist_ok=True)
    rank = save.place.rank
    part, random = aside / f"part-{rank:05d}.safetensors", aside / f"rng-{rank:05d}.json"
    save_file(save.tensors, part)
    random.write_text(json.dumps(save.rng), encoding="utf-8")
    flush(part)
    return [part, random]


def _host_copy(value: Tensor) -> Tensor:
    copy = torch.empty(value.shape, dtype=value.dtype)
    return copy.copy_(value)
