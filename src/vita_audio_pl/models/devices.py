"""Devices that a person asks for."""

import torch

from vita_audio_pl.errors import UserError


def require_device(device: torch.device | str) -> None:
    """Refuses a GPU where there is none.

    Raises:
        UserError: says so.
    """
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={device} was asked for, but there is no GPU here; use device=cpu")
