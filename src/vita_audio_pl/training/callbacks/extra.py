"""User-defined callbacks (and Lightning's own): what they watch, and their state in checkpoints."""

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, WeightAveraging
from torch import Tensor, nn

from vita_audio_pl.config.component import Custom, find_class
from vita_audio_pl.errors import UserError
from vita_audio_pl.training.engines.base import AVERAGE, Engine

_LIGHTNING = ("lightning.", "pytorch_lightning.")
_TENSOR, _COUNT = "tensor", "n_averaged"


def log_figures(extra: Mapping[str, Any]) -> bool:
    """Whether any of the configured callbacks may log figures: Lightning's own do not."""
    return not all(isinstance(each, Custom) and each.path.startswith(_LIGHTNING) for each in extra.values())


def check_watched(extra: Mapping[str, Any], figures: Sequence[str], validate_every: int | None) -> None:
    """Refuse callbacks that watch (`monitor`) what validation will not give, or not before the stage is over.

    Args:
        extra: configured callbacks by name.
        figures: names of all that validation gives.

    Raises:
        UserError: with the closest names, or the setting that is missing.
    """
    for name, callback in extra.items():
        watched = callback.settings.get("monitor") if isinstance(callback, Custom) else None
        if not isinstance(watched, str) or not watched.startswith("val"):
            continue
        if watched not in figures and not log_figures(extra):
            near = difflib.get_close_matches(watched, figures, 3, 0.0)
            way = f"did you mean {' or '.join(near)}?" if near else "this stage has no held-out data to validate on"
            raise UserError(f"callbacks.extra.{name}.monitor={watched} is not a validation metric; {way}")
        kind = find_class(callback.path, callback.path)
        if validate_every is None and isinstance(kind, type) and issubclass(kind, EarlyStopping):
            raise UserError(
                f"callbacks.extra.{name} could not stop before the stage's end, where its only validation is: give "
                "callbacks.validate_every"
            )


class ExtraCallbacks:
    """State of `callbacks.extra` in checkpoints: their `state_dict`, and averaged weights.

    Args:
        callbacks: callbacks by name.
        engine: engine of the run, which also saves averaged weights.

    Raises:
        UserError: weight averaging under an engine that shards weights: Lightning's callback copies the whole model.
    """

    def __init__(self, callbacks: Mapping[str, Callback], engine: Engine) -> None:
        self.callbacks = callbacks
        for name, callback in callbacks.items():
            if isinstance(callback, WeightAveraging):
                if engine.settings.engine.shards:
                    raise UserError(
                        f"callbacks.extra.{name} averages whole weights, and trainer={engine.settings.name} shards them; "
                        "choose trainer=ddp"
                    )
                engine.beside[AVERAGE] = partial(_averaged_model, callback)

    def state(self) -> dict[str, Any]:
        """JSON values."""
        states = {}
        for name, callback in self.callbacks.items():
            states[name] = {key: _plain(value, f"{name}.{key}") for key, value in callback.state_dict().items()}
            if isinstance(callback, WeightAveraging):
                states[name][_COUNT] = int(_averaged(callback).n_averaged)
        return states

    def resume_from(self, state: dict[str, Any]) -> None:
        """Restore a `state()`; callbacks that it does not have start from scratch."""
        for name in self.callbacks.keys() & state.keys():
            callback, values = self.callbacks[name], dict(state[name])
            if isinstance(callback, WeightAveraging):
                _averaged(callback).n_averaged.fill_(values.pop(_COUNT, 0))
            callback.load_state_dict({key: _rich(value) for key, value in values.items()})


def _averaged(callback: WeightAveraging) -> Any:
    return callback._average_model


def _averaged_model(callback: WeightAveraging) -> nn.Module:
    model: nn.Module = _averaged(callback).module.speech_lm
    return model


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Tensor) and value.numel() < 1024:
        return {_TENSOR: value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str | list | dict):
        return value
    raise UserError(f"callbacks.extra.{name} is a {type(value).__name__}, which a checkpoint cannot keep")


def _rich(value: Any) -> Any:
    if isinstance(value, dict) and _TENSOR in value:
        return torch.tensor(value[_TENSOR], dtype=getattr(torch, value["dtype"]))
    return value
