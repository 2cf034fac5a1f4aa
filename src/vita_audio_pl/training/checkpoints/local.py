"""Checkpoints on a fast disk of each node, from where they are copied to the storage that all nodes see.

`<root>/<stage>-<shared folder's hash>-<its mark>/step-<n>.ckpt/` holds the parts of the node's ranks and `state.json`. The
mark lies in the shared folder and goes with it, so that what a node kept of a run that was started over is never used.
"""

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import lightning as L
import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import find_damage
from vita_audio_pl.storage.owned import Owned
from vita_audio_pl.training.checkpoints.folders import (
    ASIDE,
    BAD,
    DOUBT,
    GOOD,
    LAUNCH,
    STATE,
    checkpoint_name,
    checkpoints,
    complete_checkpoints,
    copy_open_file,
    remove_or_say,
    step_of,
    tidy,
)
from vita_audio_pl.training.checkpoints.parts import Checkpoint, damage, part_name, read_state
from vita_audio_pl.training.checkpoints.restore import newest_usable
from vita_audio_pl.training.run_folder.layout import LOCAL_CHECKPOINTS

MARK = "local.id"


class LocalCheckpoints:
    """The checkpoints of one stage on this node's own disk.

    Args:
        root: folder on the node, the same name on all of them.
        shared: folder of the stage's checkpoints that all nodes see.
        keep: last checkpoints kept here.

    Attributes:
        folder: of this stage on this node, once `open` was called.
        launch: names this start of the run; parts of different starts are never put together.
    """

    def __init__(self, root: Path, shared: Path, keep: int) -> None:
        self.root, self.shared, self.keep = root.expanduser(), shared, keep
        self.folder, self.launch = root, ""

    def open(self, trainer: L.Trainer) -> None:
        """Make this node's folder and remove what no run will use any more. Collective.

        Raises:
            UserError: the folder cannot be made, or holds what is not ours.
        """
        mark = trainer.strategy.broadcast(self._mark() if trainer.is_global_zero else "")
        self.launch = trainer.strategy.broadcast(uuid.uuid4().hex)
        place = hashlib.sha256(str(self.shared.resolve()).encode()).hexdigest()[:12]
        self.folder = self.root / f"{self.shared.parent.name}-{place}-{mark}"
        if trainer.local_rank == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"callbacks.local_checkpoints={self.root} cannot be used on this node ({error.strerror}); give a folder "
                    "on a disk of its own, or null to write to the shared storage at once"
                ) from None
            Owned.claim(self.folder, LOCAL_CHECKPOINTS).remove_abandoned()
            tidy(self.folder)
            for started_over in self.root.glob(f"*-{place}-*"):
                if started_over != self.folder:
                    _discard(started_over)
        trainer.strategy.barrier("local checkpoints are open")

    def copy_to_shared(self, trainer: L.Trainer) -> None:
        """Copy the newest checkpoint that all nodes together hold to the shared folder, where it is newer. Collective."""

        def read(checkpoint: Checkpoint) -> None:
            mine = [part_name(rank) for rank in range(trainer.global_rank, len(checkpoint.parts), trainer.world_size)]
            for changed in find_damage(checkpoint.path, {name: checkpoint.parts[name] for name in mine}):
                raise ValueError(str(changed))

        newest = newest_usable(trainer, self.shared, GOOD, DOUBT, read=read)
        after = -1 if newest is None else newest.step
        held = self._held(after) if trainer.local_rank == 0 else {}
        of_ranks: list[dict[tuple[int, str], tuple[int, list[int]]]] = [held]
        if trainer.world_size > 1:
            of_ranks = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(of_ranks, held)
        whole = [key for key in set().union(*of_ranks) if _is_whole([held[key] for held in of_ranks if key in held])]
        if whole:
            self._copy_home(trainer, max(whole), of_ranks)
            after = max(whole)[0]
        if trainer.local_rank == 0:
            for path in checkpoints(self.folder, GOOD, DOUBT, BAD):
                if (
                    step_of(path) > after or path.suffix != GOOD
                ):  # parts are lost, and the run will write this step again
                    remove_or_say(path)
        trainer.strategy.barrier("local checkpoints are brought home")

    def drop_newer(self) -> None:
        """Remove what is newer than all in the shared folder: the run has gone back; one rank of a node calls it."""
        home = checkpoints(self.shared, GOOD, DOUBT)
        for path in checkpoints(self.folder, GOOD, DOUBT, BAD):
            if home and step_of(path) > step_of(home[-1]):
                remove_or_say(path)

    def prune(self) -> None:
        """Remove all but the last that are in the shared folder; one rank of a node calls it."""
        home = complete_checkpoints(self.shared)
        for old in complete_checkpoints(self.folder)[: -self.keep]:
            if home and step_of(old) <= step_of(home[-1]):
                remove_or_say(old)
        for old in checkpoints(self.folder, DOUBT, BAD)[:-1]:
            remove_or_say(old)

    def drop(self) -> None:
        """Remove all, when the stage is over; one rank of a node calls it."""
        _discard(self.folder)

    def _mark(self) -> str:
        path = self.shared / MARK
        if not path.exists():
            aside = path.with_suffix(".part")
            aside.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
            os.replace(aside, path)
        return path.read_text(encoding="utf-8")

    def _held(self, after: int) -> dict[tuple[int, str], tuple[int, list[int]]]:
        """(step, launch) of this node's checkpoints after a step -> ranks that wrote it, and whose parts are here."""
        found = {}
        for path in complete_checkpoints(self.folder):
            if step_of(path) > after:
                parts = [int(part.stem.rpartition("-")[2]) for part in path.glob("part-*.safetensors")]
                if why := damage(path, parts):
                    print(f"{path} is left out: {why}", flush=True)
                    continue
                state: dict[str, Any] = read_state(path)
                found[step_of(path), str(state.get(LAUNCH))] = int(state["ranks"]), parts
        return found

    def _copy_home(
        self, trainer: L.Trainer, key: tuple[int, str], of_ranks: list[dict[tuple[int, str], tuple[int, list[int]]]]
    ) -> None:
        name = checkpoint_name(key[0])
        aside = self.shared / f"{name}{ASIDE}"
        if key in of_ranks[trainer.global_rank]:
            aside.mkdir(exist_ok=True)
            first = next(rank for rank, held in enumerate(of_ranks) if key in held)
            for path in (*(self.folder / name).glob("part-*"), *(self.folder / name).glob("rng-*")):
                copy_open_file(path.open("rb"), aside / path.name)
            if first == trainer.global_rank:
                copy_open_file((self.folder / name / STATE).open("rb"), aside / STATE)
        trainer.strategy.barrier("parts are copied")
        if trainer.is_global_zero:
            os.replace(aside, self.shared / name)
            print(f"{name} is newer on the nodes' own disks than in {self.shared}: it was copied there", flush=True)
        trainer.strategy.barrier("the checkpoint is in the shared folder")


def _discard(folder: Path) -> None:
    """Remove a stage's folder on this node, or say why it stays."""
    try:
        Owned.claim(folder, LOCAL_CHECKPOINTS).discard()
    except (UserError, OSError) as error:
        print(f"{folder} stays: {error}", flush=True)


def _is_whole(held: list[tuple[int, list[int]]]) -> bool:
    return {part for _, parts in held for part in parts} == set(range(held[0][0]))
