"""Canonical checkpoints: whole tensors by parameter name, whatever engine and number of ranks wrote them.

`step-<n>.ckpt/` holds `part-<r>.safetensors` (weights and AdamW's moments of the parameters that train, dealt out over the
ranks), `rng-<r>.json` and `state.json`, which is written last. Frozen weights are not in it: they come from the parent.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L

from vita_audio_pl.errors import UserError

STATE = "state.json"
WEIGHT = "weight"
ASIDE = ".tmp"
BEST = "best.json"
LAUNCH = "launch"
FORMAT = 1
_NAME = re.compile(r"step-(\d+)\.ckpt")
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
