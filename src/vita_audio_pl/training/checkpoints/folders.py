"""Canonical checkpoints: whole tensors by parameter name, whatever engine and number of ranks wrote them.

`step-<n>.ckpt/` holds `part-<r>.safetensors` (weights and AdamW's moments of the parameters that train, dealt out over the
ranks), `rng-<r>.json`, `part-<r>.json` with the checksums of both, and `state.json`, which is sealed and written last.
Frozen weights are not in it: they come from the parent.

What the folder is called says what the checkpoint is good for:

| name | written | resuming | going back |
|---|---|---|---|
| `step-<n>.ckpt` | after a good step | yes | yes |
| `step-<n>.doubt` | while the guard had doubts about the steps | yes, where it is the newest | never |
| `step-<n>.bad` | not finite, or later found damaged or of no help | never | never |
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.storage.checksums import FileSum, find_damage, parse_checksums, read_sealed
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.storage.owned import MARK, Owned
from vita_audio_pl.training.checkpoints.rng import check_rng_state
from vita_audio_pl.training.run_folder.layout import LOCAL_CHECKPOINTS, STAGE

STATE = "state.json"
WEIGHT = "weight"
ASIDE = ".tmp"
BEST = "best.json"
LAUNCH = "launch"
FORMAT, WITHOUT_CHECKSUMS = 2, 1  # what is written, and what is read beside it
GOOD, DOUBT, BAD = ".ckpt", ".doubt", ".bad"
REASON = "reason.txt"
_NAME = re.compile(r"step-(\d+)(\.ckpt|\.doubt|\.bad)")
_LEFTOVER = re.compile(r"step-\d+\.(ckpt|doubt|bad)(\.old)?\.tmp")  # older versions removed under `.old.tmp`
_BLOCK = 16 * 2**20  # bytes copied at a time


def checkpoints(folder: Path, *kinds: str) -> list[Path]:
    """Checkpoints of these kinds, oldest first; of one step a good one comes last."""
    found = [path for path in folder.glob("step-*") if (name := _NAME.fullmatch(path.name)) and name[2] in kinds]
    return sorted(found, key=lambda path: (step_of(path), path.suffix == GOOD))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Good checkpoints, oldest first."""
    return checkpoints(folder, GOOD)


def checkpoint_name(step: int, kind: str = GOOD) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:08d}{kind}"


def part_checksums(rank: int) -> str:
    """Name of the file with the checksums of what a rank wrote."""
    return f"part-{rank:05d}.json"


def step_of(checkpoint: Path) -> int:
    """Optimiser steps done when the checkpoint was written."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise UserError(f"{checkpoint} is not a checkpoint: its name is not step-<number>.ckpt")
    return int(match.group(1))


def best_checkpoint(folder: Path) -> dict[str, Any] | None:
    """`step`, `metric` and `value` of the best checkpoint so far; None where none was chosen, or it is gone."""
    with suppress(OSError, ValueError, TypeError, KeyError):  # what cannot be read is chosen anew
        best: dict[str, Any] = json.loads((folder / BEST).read_text(encoding="utf-8"))
        if (folder / checkpoint_name(best["step"])).is_dir() and isinstance(best["value"], int | float):
            return best
    return None


def mark_best(folder: Path, step: int, metric: str, value: float) -> None:
    """Keep the checkpoint of `step` as the best by `metric`."""
    write_json(folder / BEST, {"step": step, "metric": metric, "value": value})


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint.

    Raises:
        OSError, ValueError: it cannot be read.
        UserError: it is of another version's format.
    """
    path = checkpoint / STATE
    try:
        state = read_sealed(path)
    except UserError as error:
        state = _read_object(path)
        if "format" not in state or "seal" in state or state["format"] == FORMAT:
            raise ValueError(str(error)) from error
    if state["format"] not in (FORMAT, WITHOUT_CHECKSUMS):
        raise UserError(f"the checkpoint {checkpoint} has format {state['format']}; this version reads {FORMAT}")
    return state


def damage(checkpoint: Path, ranks: Iterable[int] | None = None) -> str | None:
    """What is wrong with the bytes of a checkpoint; None where they are what was written.

    Of a checkpoint without checksums, as older versions wrote them, sizes and formats tell.

    Args:
        ranks: whose files have to be there; None asks for those of all ranks that wrote.

    Raises:
        UserError: it has the format of another version, and may be in order.
        OSError: the machine cannot read now, and it may be in order.
    """
    path = checkpoint / STATE
    try:
        state = read_state(checkpoint)
        step, wrote = state.get("step"), state.get("ranks")
        if step != step_of(checkpoint) or not isinstance(wrote, int):
            raise ValueError(f"it is of step {step} and of {wrote} ranks")
        for rank in range(wrote) if ranks is None else ranks:
            if state["format"] == FORMAT:
                path = checkpoint / part_checksums(rank)
                for changed in find_damage(checkpoint, _written(path)):
                    return str(changed)
            path = checkpoint / f"part-{rank:05d}.safetensors"
            with safe_open(path, "pt"):  # compares the file's size with what its header lists
                pass
            path = checkpoint / f"rng-{rank:05d}.json"
            check_rng_state(_read_object(path))
    except (OSError, ValueError, SafetensorError) as error:
        if is_machine_fault(error):
            raise
        return f"{path} is missing, cut or damaged ({error})"
    return None


def _written(path: Path) -> dict[str, FileSum]:
    try:
        return parse_checksums(path, path.read_bytes())
    except UserError as error:
        raise ValueError(str(error)) from error


def set_apart(checkpoint: Path, reason: str) -> Path:
    """Rename a checkpoint so that it is never used again, and note why inside; the new place."""
    bad = checkpoint.with_suffix(BAD)
    replace_folder(checkpoint, bad)
    with suppress(OSError):
        (bad / REASON).write_text(reason + "\n", encoding="utf-8")
    return bad


def replace_folder(source: Path, target: Path) -> None:
    """Give a checkpoint its name, in place of one of that name and kind."""
    if os.path.lexists(target):
        remove(target)
    os.replace(source, target)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, or what is left of one; killed half-way, the rest of it has no checkpoint's name.

    Raises:
        UserError: it holds what this program did not write; nothing of it was removed.
    """
    owner = _owner(checkpoint.parent)
    owner.remove(str(checkpoint.relative_to(owner.root)))


def remove_or_say(checkpoint: Path) -> None:
    """Remove a checkpoint, or say once why it stays."""
    try:
        remove(checkpoint)
    except UserError as error:
        _say(f"{checkpoint.name} stays: {error}")


def tidy(folder: Path) -> None:
    """Remove what killed writers left half-written, before the first checkpoint is written.

    Raises:
        UserError: something that is not ours has the name of a checkpoint, or of what becomes one.
    """
    owner = _owner(folder)
    for path in sorted(folder.glob("step-*")):
        if _LEFTOVER.fullmatch(path.name):
            remove(path)
        elif _NAME.fullmatch(path.name) and not (path / STATE).is_file():
            if foreign := owner.foreign(str(path.relative_to(owner.root))):
                raise UserError(
                    f"{path} is no checkpoint that this program wrote (it holds {foreign[0].name}), so it is not touched; "
                    "move it away and give the same command again"
                )


def _owner(folder: Path) -> Owned:
    """The marked folder that checkpoints in `folder` are part of: a stage's, or itself on a node's own disk."""
    on_node = (folder / MARK).is_file()
    return Owned.open(folder, LOCAL_CHECKPOINTS) if on_node else Owned.open(folder.parent, STAGE)


@cache
def _say(sentence: str) -> None:
    print(sentence, flush=True)


def prune(folder: Path, keep: int) -> None:
    """Remove good checkpoints but the last `keep` (0: all) and the best, and doubtful ones but the newest, if it is not old."""
    best, good, doubtful = best_checkpoint(folder), complete_checkpoints(folder), checkpoints(folder, DOUBT)
    oldest_kept = step_of(good[-keep]) if 0 < keep <= len(good) else -1
    for path in good[:-keep]:  # none where `keep` is 0
        if best is None or step_of(path) != best["step"]:
            remove_or_say(path)
    for path in doubtful:
        if path != doubtful[-1] or step_of(path) < oldest_kept:
            remove_or_say(path)


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


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested without end") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value
