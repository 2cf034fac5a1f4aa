"""Checkpoints: weights and moments by parameter name and range of elements, whatever engine and number of ranks wrote them.

`step-<n>.ckpt/` holds `part-<r>.safetensors` (what rank r holds, or its share of what ranks hold in common, of the parameters
that train), `rng-<r>.json`, `part-<r>.json` with the checksums of both and what lies where, and `state.json`, which is sealed
and written last. Frozen weights are not in it: they come from the parent.

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
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.storage.owned import MARK, Owned
from vita_audio_pl.storage.places import relative
from vita_audio_pl.training.run_folder.layout import LOCAL_CHECKPOINTS, STAGE

CHECKPOINTS = "checkpoints"
STATE = "state.json"
ASIDE = ".tmp"
BEST = "best.json"
ENDED = "ended.json"  # the step that a callback made the last one
ROLLED_BACK = "went_back.json"  # the step that a command asked to go on from
LAUNCH = "launch"
FORMAT = 3
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


def last_checkpoint(folder: Path, step: int) -> Path:
    """The checkpoint of the step that a stage ends with.

    Raises:
        UserError: it is not there to be used.
    """
    for kind in (GOOD, DOUBT):
        if (path := folder / checkpoint_name(step, kind)).is_dir():
            return path
    why = "its values are not all finite" if (folder / checkpoint_name(step, BAD)).is_dir() else "it is not there"
    raise UserError(f"the checkpoint of step {step} in {folder} cannot be used: {why}")


def checkpoint_name(step: int, kind: str = GOOD) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:08d}{kind}"


def step_of(checkpoint: Path) -> int:
    """Optimiser steps done when the checkpoint was written."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise UserError(f"{checkpoint} is not a checkpoint: its name is not step-<number>.ckpt")
    return int(match.group(1))


def find_checkpoint(name: Path) -> Path | None:
    """The checkpoint that a path names, as `.../checkpoints/step-120`; None where it names none.

    The number may be without the zeros and the ending: of one step the good checkpoint is meant.

    Raises:
        UserError: there is no checkpoint of that step, or it was set apart.
    """
    if not name.parent.is_dir():
        return None
    if name.name == CHECKPOINTS and any(checkpoints(name, GOOD, DOUBT, BAD)):
        step = None
    elif name.parent.name == CHECKPOINTS and (short := re.fullmatch(r"step-(\d+)(\.ckpt|\.doubt)?", name.name)):
        step = int(short[1])
        kinds = (short[2],) if short[2] else (DOUBT, GOOD)
        found = [path for path in checkpoints(name.parent, *kinds) if step_of(path) == step]
        if found:
            return found[-1]
    elif _NAME.fullmatch(name.name) and (name / STATE).is_file() and name.suffix != BAD:
        return name
    elif not (name.suffix == BAD and _NAME.fullmatch(name.name)):
        return None
    folder = name if name.name == CHECKPOINTS else name.parent
    there = ", ".join(path.name for path in checkpoints(folder, GOOD, DOUBT)) or "none"
    raise UserError(
        f"{name} is {'a folder of checkpoints: name one of them' if step is None else 'no checkpoint that can be used'}; "
        f"there are {there}"
    )


def best_checkpoint(folder: Path) -> dict[str, Any] | None:
    """`step`, `metric` and `value` of the best checkpoint so far; None where none was chosen, or it is gone."""
    with suppress(OSError, ValueError, TypeError, KeyError):  # what cannot be read is chosen again
        best: dict[str, Any] = json.loads((folder / BEST).read_text(encoding="utf-8"))
        if (folder / checkpoint_name(best["step"])).is_dir() and isinstance(best["value"], int | float):
            return {name: best[name] for name in ("step", "metric", "value")}
    return None


def mark_best(folder: Path, step: int, metric: str, value: float) -> None:
    """Keep the checkpoint of `step` as the best by `metric`."""
    write_json(folder / BEST, {"format": 1, "step": step, "metric": metric, "value": value})


def note_step(note: Path, step: int) -> None:
    """Note a step in a file of the checkpoints' folder, `ENDED` or `ROLLED_BACK`."""
    write_json(note, {"format": 1, "step": step})


def noted_step(note: Path) -> int | None:
    """What `note_step` has noted; None where nothing can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return int(json.loads(note.read_text(encoding="utf-8"))["step"])
    return None


def may_go_back(folder: Path, step: int) -> bool:
    """Whether a run that is asked to go back to `step` would: it has that checkpoint, and has not gone back to it just now."""
    return noted_step(folder / ROLLED_BACK) != step and step in map(step_of, checkpoints(folder, GOOD, DOUBT))


def move_aside(checkpoint: Path, reason: str) -> Path:
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
    owner.remove(str(relative(checkpoint, owner.root)))


def remove_or_say(checkpoint: Path) -> None:
    """Remove a checkpoint, or say once why it stays."""
    try:
        remove(checkpoint)
    except UserError as error:
        _print(f"{checkpoint.name} stays: {error}")


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
            if foreign := owner.foreign(str(relative(path, owner.root))):
                raise UserError(
                    f"{path} is not a checkpoint that this program wrote (it holds {foreign[0].name}), so it is not touched; "
                    "move it away and rerun the command"
                )


def _owner(folder: Path) -> Owned:
    """The marked folder that checkpoints in `folder` are part of: a stage's, or itself on a node's own disk."""
    on_node = (folder / MARK).is_file()
    return Owned.open(folder, LOCAL_CHECKPOINTS) if on_node else Owned.open(folder.parent, STAGE)


@cache
def _print(sentence: str) -> None:
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
