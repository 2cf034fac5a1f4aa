"""Weight files of other projects: read without executing pickles, and loaded only if everything matches."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.foreign.fields import require_file
from vita_audio_pl.storage.places import why_pointer

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_LARGEST_HEADER = 16 << 20  # bytes; that of a model with a thousand tensors has a hundred thousand
_AGAIN = "download the whole checkpoint folder"


def open_safetensors(path: Path, remedy: str = _AGAIN) -> Any:
    """Open the file, for `with`; no tensor is read yet.

    Args:
        remedy: what to do if the file is missing.

    Raises:
        UserError: there is no such file, its table of tensors is larger than that of any real model, or it is damaged.
    """
    size = require_file(path, remedy)
    if pointer := why_pointer(path):
        raise UserError(pointer)
    try:
        with path.open("rb") as file:
            table = int.from_bytes(file.read(8), "little")
        if table > min(size, _LARGEST_HEADER):
            raise UserError(
                f"{path} is damaged: it is cut short or is not a safetensors file (its table would have {table:,} bytes); "
                "copy it again"
            )
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is damaged: it is cut short or is not a safetensors file ({told}); copy it again"
        ) from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def _refuse_unusual_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than the file: torch stores tensors uncompressed and once."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path} was not read: it unpacks to {unpacked:,} bytes, more than it has itself, and torch writes no such file"
        )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors of a `.safetensors` file or of a pickled PyTorch state dict (`.pt`, `.pth`, `.bin`).

    A state dict may be nested under `state_dict`, `model_state_dict` or `model`; the prefix `module.` of
    data-parallel training is removed.

    Raises:
        UserError: the file is missing, damaged, holds anything but tensors, or its pickle asks to call a function.
    """
    path = Path(path)
    require_file(path, _AGAIN)
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        _refuse_unusual_archive(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} was not read: it is no plain PyTorch state dict (it is damaged, or wants code to be run); "
            "fetch it again from its source"
        ) from None
    except UserError:
        raise
    except Exception as error:  # torch raises nearly any type on damaged bytes
        if is_machine_fault(error):
            raise
        first_line = str(error).strip().splitlines()[:1]
        raise UserError(
            f"{path} is damaged or cut short ({first_line[0][:200] if first_line else type(error).__name__}); fetch it again"
        ) from None
    return _named_tensors(loaded, path)


def _named_tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{path} holds no state dict (names with tensors)")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: entry {str(name)[:80]!r} is not a tensor, so this is not a state dict")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or not _backed(value):
            raise UserError(
                f"{path}: tensor {name[:80]!r} is sparse, quantised or without bytes of its own; fetch it again"
            )
    if all(name.startswith("module.") for name in loaded):
        loaded = {name.removeprefix("module."): value for name, value in loaded.items()}
    return dict(loaded)


def _backed(tensor: Tensor) -> bool:
    """Whether the file holds every value: with a stride of 0, one value makes a tensor of any size."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def require_trust(path: Path, kind: str, trusted: bool) -> None:
    """Refuse a file that is more than data, unless the user has marked it as trusted.

    Raises:
        UserError: it is not trusted.
    """
    if not trusted:
        raise UserError(
            f"{path} is {kind}, which can run any code on this machine when it is loaded; if you know where it comes from, "
            "add trust_file=true"
        )


def load_strict(module: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Load exactly the tensors of `state` into `module`, which may be on the meta device.

    Raises:
        UserError: a name is missing or unexpected, a shape or the number of values differs, a value is not finite.
    """
    wanted = module.state_dict()
    complaints = []
    if missing := [name for name in wanted if name not in state]:
        complaints.append(f"{len(missing)} tensors are missing ({_some(missing)})")
    if unknown := [name for name in state if name not in wanted]:
        complaints.append(f"{len(unknown)} tensors do not belong ({_some(unknown)})")
    reshaped = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if reshaped:
        name = reshaped[0]
        complaints.append(
            f"{len(reshaped)} tensors have another shape (first: {name} is {tuple(state[name].shape)}, "
            f"the configuration asks for {tuple(wanted[name].shape)})"
        )
    if complaints:
        raise UserError(
            f"{source} does not fit its configuration: {'; '.join(complaints)}; it has "
            f"{sum(t.numel() for t in state.values()):,} values instead of {sum(t.numel() for t in wanted.values()):,}"
        )
    converted = {}
    for name, like in wanted.items():
        tensor = state[name]
        if tensor.is_floating_point() != like.is_floating_point() or tensor.is_complex() or tensor.itemsize < 2:
            raise UserError(f"{source}: {name} has type {tensor.dtype}, which is not what the configuration asks for")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source}: {name} holds values that are not finite; fetch the file again")
        converted[name] = tensor.to(like.dtype)
    module.load_state_dict(converted, strict=True, assign=True)


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
