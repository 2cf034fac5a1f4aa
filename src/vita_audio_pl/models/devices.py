"""Checks of the requested device, and the processor's name."""

import platform
from functools import lru_cache
from pathlib import Path

import torch

from vita_audio_pl.errors import UserError


def require_device(device: torch.device | str) -> None:
    """Refuse a GPU on a machine that has none.

    Raises:
        UserError: there is no GPU.
    """
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={device} was asked for, but there is no GPU here; use device=cpu")


@lru_cache
def processor() -> str:
    """The CPU's name as the system reports it, with family and model where several processors share a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.machine()
    family = [facts[key] for key in ("cpu family", "model") if key in facts]
    return f"{name} ({'/'.join(family)})" if family else name
