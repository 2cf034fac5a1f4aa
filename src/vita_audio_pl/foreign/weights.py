"""Weight files of other projects: read without running what a pickle may ask for, loaded only where everything fits."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vita_audio_pl.errors import UserError

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads the named tensors of a `.safetensors` file or of a pickled PyTorch state dict (`.pt`, `.pth`, `.bin`).

    A state dict may lie under one of the keys `state_dict`, `model_state_dict` or `model`; the prefix `module.` of
    data-parallel training is taken off.

    Raises:
        UserError: the file is missing, damaged, holds anything but tensors, or its pickle asks to call a function.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such weight file; download the whole checkpoint folder")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} was not read: it is no plain PyTorch state dict (it is damaged, or wants code to be run); "
            "fetch it again from its source"
        ) from None
    # torch raises nearly any type on damaged bytes
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        first_line = str(error).strip().splitlines()[:1]
        raise UserError(
            f"{path} is damaged or cut short ({first_line[0] if first_line else type(error).__name__}); fetch it again"
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
            raise UserError(f"{path}: entry {name!r} is not a tensor, so this is no state dict")
    if all(name.startswith("module.") for name in loaded):
        loaded = {name.removeprefix("module."): value for name, value in loaded.items()}
    return dict(loaded)


def require_trust(path: Path, kind: str, trusted: bool) -> None:
    """Refuses a file that is more than data, unless a person has said that it is trusted.

    Raises:
        UserError: it is not trusted.
    """
    if not trusted:
        raise UserError(
            f"{path} is {kind}, which can run any code on this machine when it is loaded; if you know where it comes from, "
            "add trust_file=true"
        )


def load_strict(module: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Gives `module` (which may live on the meta device) exactly the tensors of `state`.

    Raises:
        UserError: a name is missing or too many, a shape or the number of values differs, a value is not finite.
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
            f"{sum(t.numel() for t in state.values()):,} values, {sum(t.numel() for t in wanted.values()):,} are wanted"
        )
    converted = {}
    for name, like in wanted.items():
        tensor = state[name]
        if tensor.is_floating_point() != like.is_floating_point():
            raise UserError(f"{source}: {name} has type {tensor.dtype}, which is not what the configuration asks for")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source}: {name} holds values that are not finite; fetch the file again")
        converted[name] = tensor.to(like.dtype)
    module.load_state_dict(converted, strict=True, assign=True)


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
