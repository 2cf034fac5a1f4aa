"""Checkpoints are written while training continues, and get their name only when they are whole."""

import contextlib
import errno
import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import write_sealed
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.training.checkpoints.folders import (
    ASIDE,
    BAD,
    DOUBT,
    FORMAT,
    GOOD,
    LAUNCH,
    REASON,
    STATE,
    checkpoint_name,
    complete_checkpoints,
    copy_open_file,
    prune,
    remove,
    replace_folder,
    tidy,
)
from vita_audio_pl.training.checkpoints.host_copy import HostCopy
from vita_audio_pl.training.checkpoints.local import LocalCheckpoints
from vita_audio_pl.training.checkpoints.parts import write_part
from vita_audio_pl.training.checkpoints.rng import rng_state
from vita_audio_pl.training.engines.base import Engine, trained_parameters, whole_shape
from vita_audio_pl.training.step.freezing import bunch

_WAIT_FOR_RANKS = 1800.0  # seconds until the last rank has written its part
_WAIT_FOR_ALL = timedelta(seconds=3 * _WAIT_FOR_RANKS)  # until all know that the folder has its name, renaming included
_LOOK = 0.5  # seconds between two looks for other ranks' parts, at most
_NOT_FINITE, _FAILED = "not_finite", "failed"  # what a rank says of its part


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

    step: int
    copy: HostCopy
    own: dict[str, Any]
    facts: dict[str, Any]
    place: _Place
    before: threading.Thread | None

    @property
    def aside(self) -> str:
        """The folder's name until it is whole."""
        return f"{checkpoint_name(self.step)}{ASIDE}"

    @property
    def done(self) -> str:
        """Where this rank says that its part is written, and whether it is finite."""
        return f"rank-{self.place.rank:05d}.done"


class CheckpointWriter:
    """Takes a copy of what trains and writes it in the background.

    Every rank checks that its part is finite and writes it under a name aside; rank 0 waits for all parts, then renames
    the folder, so what carries the name is whole. A kill at any moment leaves the last good checkpoint. What is not finite,
    or was saved while the guard had doubts, gets another name and takes no good one's place. With `local`, ranks write to
    their node's own disk first, and copy their parts from there while the next checkpoint may be written.

    Args:
        folder: of the stage's checkpoints, seen by all nodes.
        engine: that the model trains under.
        keep: last good checkpoints kept, beside the best; 0 keeps all.
        local: checkpoints on the nodes' own disks.

    Attributes:
        stalled: seconds that training has waited for checkpoints.
        spoilt: what the last checkpoint that was not finite says of itself, on rank 0.
    """

    def __init__(self, folder: Path, engine: Engine, keep: int, local: LocalCheckpoints | None = None) -> None:
        self.folder, self.engine, self.keep, self.local = folder, engine, keep, local
        self.stalled = 0.0
        self.spoilt: str | None = None
        self._threads: deque[threading.Thread] = deque()
        self._latest = -1
        self._failure: Exception | None = None
        self._given_up = threading.Event()  # another rank's part will never come
        self._group: Any = None  # of all ranks, with a patience of its own; None where there is one

    def prepare(self, trainer: L.Trainer) -> None:
        """Remove what killed writers left, and bring home what they had only written locally. Collective.

        Raises:
            UserError: something that is not ours is in the way.
        """
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=_WAIT_FOR_ALL)
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            tidy(self.folder)
        trainer.strategy.barrier("leftovers are gone")
        if self.local is not None:
            self.local.open(trainer)
            self.local.copy_to_shared(trainer)

    def save(
        self,
        trainer: L.Trainer,
        model: torch.nn.Module,
        state: Mapping[str, Any],
        doubt: str | None = None,
        own: Mapping[str, Any] | None = None,
    ) -> None:
        """Copy this rank's weights and moments, as `HostCopy` does, and write them while training continues. All ranks call it.

        Args:
            state: JSON values that go into `state.json`.
            doubt: why the guard has doubts about this state; None where it has none.
            own: JSON values of this rank, stored beside its random generators.
        """
        started = time.perf_counter()
        self._join(leave=0 if self.local is None else 1)  # one may still be copied while the next is written
        step = trainer.global_step
        kinds = (GOOD, DOUBT) if doubt else (GOOD,)
        if step != self._latest and not any((self.folder / checkpoint_name(step, kind)).exists() for kind in kinds):
            self._latest = step
            copy = HostCopy.of(self.engine, model, trainer.optimizers[0])
            shapes = {name: list(whole_shape(parameter)) for name, parameter in trained_parameters(model)}
            facts = {
                "format": FORMAT,
                "step": step,
                "ranks": trainer.world_size,
                "doubt": doubt,
                "shapes": shapes,
                **state,
            }
            place = _Place(trainer.global_rank, trainer.world_size, trainer.local_rank == 0, trainer.num_devices)
            before = self._threads[-1] if self._threads else None
            save = _Save(step, copy, {**rng_state(), **(own or {})}, facts, place, before)
            thread = threading.Thread(target=self._write, args=(save,), name="checkpoint writer", daemon=True)
            self._threads.append(thread)
            thread.start()
            copy.take()
        self.stalled += time.perf_counter() - started

    def finish(self, failed_elsewhere: bool = False) -> None:
        """Wait until the last checkpoint is on disk and has its name, and all ranks know it. Collective.

        Until then no rank may leave: where one ends, a scheduler kills the others.

        Args:
            failed_elsewhere: another rank could not write its part, so this one has to stop, too.

        Raises:
            UserError: it could not be written; the one before it is still there.
        """
        if failed_elsewhere:
            self._given_up.set()
        self._join(leave=0)
        failure, self._failure = self._failure, None
        failures = [None if failure is None else _reason(failure)]
        if self._group is not None:
            own, failures = failures[0], [None] * torch.distributed.get_world_size(self._group)
            torch.distributed.all_gather_object(failures, own, group=self._group)
        if not any(failures):
            return
        kept = complete_checkpoints(self.folder)
        good = f"the last good one is {kept[-1]}" if kept else "there is no earlier one"
        why = next(filter(None, failures))
        where = f"{self.folder}" if self.local is None else f"{self.local.folder} and then {self.folder}"
        raise UserError(f"a checkpoint could not be written to {where}: {why}; {good}; free some space and rerun")

    def went_back(self) -> None:
        """Told of a rollback: nothing is spoilt any more, and the step may be saved again, with what it went back to."""
        self.spoilt, self._latest = None, -1

    def end(self, trainer: L.Trainer) -> None:
        """Wait for the last checkpoint; when the stage is over, the nodes' own disks are cleared.

        Raises:
            UserError: as `finish`.
        """
        self.finish()
        if self.local is not None and trainer.global_step >= trainer.max_steps and trainer.local_rank == 0:
            self.local.drop()

    @property
    def failed(self) -> bool:
        """Whether the last write has failed, as far as is known without waiting."""
        return self._failure is not None

    def _join(self, leave: int) -> None:
        while len(self._threads) > leave:
            self._threads.popleft().join()

    def _write(self, save: _Save) -> None:
        aside, rank = self.folder / save.aside, save.place.rank
        try:
            if self.local is None:
                _write_part(aside, save)
                facts = save.facts
            else:
                facts = {**save.facts, LAUNCH: self.local.launch}
                self._write_locally(self.local, aside, save, facts)
            write_json(aside / save.done, {_NOT_FINITE: save.copy.not_finite})
            if rank == 0:
                self._complete(aside, self.folder, save.step, facts, save.place.ranks)
                prune(self.folder, self.keep)
            if self.local is not None and save.place.leads_node:
                self.local.prune()
        except Exception as error:  # whatever it is: training must hear of it
            self._failure = self._failure or error
            save.copy.give_up()
            if rank == 0:
                _give_up(aside)
            else:
                with contextlib.suppress(OSError):
                    write_json(aside / save.done, {_FAILED: _reason(error)})
            if self.local is not None and save.place.leads_node:
                _give_up(self.local.folder / save.aside)

    def _write_locally(self, local: LocalCheckpoints, aside: Path, save: _Save, facts: dict[str, Any]) -> None:
        """This rank's part to the node's disk, then from there to `aside`, after the checkpoint before it."""
        here = local.folder / save.aside
        # opened before the folder gets its name, so that neither this nor its removal can come between
        opened = {file.name: file.open("rb") for file in _write_part(here, save)}
        write_json(here / save.done, {_NOT_FINITE: save.copy.not_finite})
        if save.place.leads_node:
            self._complete(here, local.folder, save.step, facts, save.place.ranks_on_node)
        if save.before is not None:
            save.before.join()
        aside.mkdir(parents=True, exist_ok=True)
        for file, source in opened.items():
            copy_open_file(source, aside / file)

    def _complete(self, aside: Path, folder: Path, step: int, facts: dict[str, Any], ranks: int) -> None:
        """Give the folder `aside` the name that its state deserves, when all `ranks` have written their parts into it."""
        not_finite = self._wait_for_ranks(aside, ranks)
        write_sealed(aside / STATE, facts)
        kind = DOUBT if facts["doubt"] else GOOD
        if not_finite:
            kind, why = BAD, f"step {step} was saved with values that are not finite in {bunch(not_finite)}"
            (aside / REASON).write_text(why + "\n", encoding="utf-8")
            if folder == self.folder:
                self.spoilt = why
        replace_folder(aside, folder / checkpoint_name(step, kind))

    def _wait_for_ranks(self, aside: Path, ranks: int) -> list[str]:
        """Wait for all parts; names of tensors in them that are not finite."""
        deadline = time.monotonic() + _WAIT_FOR_RANKS
        said: dict[str, dict[str, Any]] = {}
        pause = 0.01
        while len(said) < ranks:
            for path in aside.glob("rank-*.done"):
                if path.name not in said:
                    said[path.name] = json.loads(path.read_text(encoding="utf-8"))
                    if _FAILED in said[path.name]:
                        raise OSError(f"{path.stem} failed: {said[path.name][_FAILED]}")
            if self._given_up.is_set():
                raise OSError("another rank could not write its part")
            if time.monotonic() > deadline:
                raise OSError(f"not all of {ranks} ranks wrote their part within {_WAIT_FOR_RANKS:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, _LOOK)
        return sorted(name for part in said.values() for name in part[_NOT_FINITE])


def _write_part(folder: Path, save: _Save) -> list[Path]:
    copy = save.copy
    return write_part(folder, save.place.rank, copy.layout, copy.pieces(), copy.starts, save.own)


def _give_up(aside: Path) -> None:
    with contextlib.suppress(OSError, UserError):  # the next start tidies up
        remove(aside)


def _reason(failure: Exception) -> str:
    full = isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT)
    return "the disk is full" if full or "No space left" in str(failure) else str(failure) or type(failure).__name__
