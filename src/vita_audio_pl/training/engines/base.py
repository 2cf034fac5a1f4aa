"""The interface of engines, and the two that keep the whole model on each device (one process, DDP)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.training.engines.precision import check_precision, plain_precision
from vita_audio_pl.training.settings import TrainerConfig

WEIGHT, AVERAGE = "weight", "average"


@dataclass(frozen=True)
class Held:
    """A rank's range of a flattened parameter.

    Attributes:
        start: index of its first element.
        tensors: `WEIGHT`, in the optimiser's precision, and moments under the optimiser's names; one-dimensional views
            of the memory in use.
    """

    start: int
    tensors: dict[str, Tensor]


class Engine:
    """Strategy of a run, and access to whole parameters and moments under it.

    `weight` and `clip` are collective: every rank must call them, in the same order.

    Attributes:
        beside: further models with the same parameters, not updated by the optimiser, that checkpoints store, by kind.
    """

    def __init__(self, settings: TrainerConfig) -> None:
        check_precision(settings.precision)
        self.settings = settings
        self.beside: dict[str, Callable[[], nn.Module]] = {}

    @property
    def backend(self) -> str:
        """Backend of the process group: gloo on CPUs, NCCL on GPUs."""
        return "gloo" if self.settings.accelerator == "cpu" else "nccl"

    @property
    def timeout(self) -> timedelta:
        """Time limit of a collective."""
        return timedelta(seconds=self.settings.timeout_seconds)

    def precision(self) -> Precision:
        """Lightning's precision plugin; engines that cast themselves use one that does nothing."""
        return plain_precision(self.settings.precision, "cpu" if self.settings.accelerator == "cpu" else "cuda")

    @property
    def fused(self) -> bool | None:
        """Whether AdamW runs as one kernel; on GPUs torch's default allocates temporaries as large as the update."""
        return True if self.settings.accelerator == "gpu" else None

    def averaging(self, accumulate: int) -> int:
        """The factor that undoes averaging over ranks and micro-batches, for a loss that is a sum over them."""
        return self.settings.world_size * accumulate

    def strategy(self) -> Strategy | str:
        """Lightning's strategy."""
        return "auto"

    def begin_batch(self, model: SpeechLM, ends_step: bool) -> None:
        """Called before each micro-batch; `ends_step`: whether it is the last of its step."""

    def shard(self, model: SpeechLM, module: L.LightningModule) -> None:
        """Distribute `model` over the devices, in place, before it is moved to them."""

    def reshard(self, model: nn.Module) -> None:
        """Give back what is still gathered after a forward pass without a backward one, as a validation."""

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Whole value of a parameter, in the optimiser's precision."""
        return parameter.detach()

    @property
    def copies(self) -> Any:
        """Process group of the ranks that hold the same data as this one; None if no other does."""
        group = torch.distributed.group.WORLD if torch.distributed.is_initialized() else None
        return group if group is not None and torch.distributed.get_world_size(group) > 1 else None

    def held(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Held]:
        """What this rank holds of every trained parameter, by name; no moments before step 1. Not collective.

        Raises:
            UserError: the optimiser has state of another shape, which a checkpoint could not restore.
        """
        found = {}
        others = {kind: dict(beside().named_parameters()) for kind, beside in self.beside.items()}
        for name, parameter in trained_parameters(model):
            tensors = {WEIGHT: parameter.detach(), **moments_of(optimizer, parameter)}
            tensors |= {kind: beside[name].detach() for kind, beside in others.items()}
            found[name] = Held(self.first_element(parameter), {kind: flat(value) for kind, value in tensors.items()})
        return found

    def first_element(self, parameter: nn.Parameter) -> int:
        """Offset of this rank's elements in the flattened parameter."""
        return 0

    def expect(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, kinds: Mapping[str, Sequence[str]], step: int
    ) -> None:
        """Allocate moments that do not exist yet, before a checkpoint is read into the tensors of `held`.

        Args:
            kinds: names of the moments by parameter; step: optimiser steps done.
        """
        for name, parameter in trained_parameters(model):
            if kinds[name]:
                state = optimizer.state[parameter]
                state["step"] = step_count(optimizer, parameter, step)
                for kind in kinds[name]:
                    if kind not in state:
                        state[kind] = torch.empty_like(parameter.detach())

    def overwritten(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply what was written into the tensors of `held`. Collective."""

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimiser whose state this engine cannot save and restore."""

    def clip(self, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor | None:
        """Clip gradients by their norm over all ranks and return that norm; None if the engine clips later."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def norm_of_last_step(self, module: nn.Module) -> Tensor | float | None:
        """Gradient norm over all ranks, before clipping, of the step just done."""
        return module.grad_norm  # type: ignore[return-value]  # SpeechLMModule keeps it

    def left_out_last_step(self) -> bool:
        """Whether a bad step just done left everything unchanged, thanks to `drop_gradients`."""
        return True

    def drop_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the next optimiser step a no-op, moments included."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


class DDPEngine(Engine):
    """Every rank has the whole model and a share of the rows; gradients are averaged."""

    def strategy(self) -> Strategy:
        # the only buffers are the rotary frequencies, equal on all ranks
        return DDPStrategy(
            process_group_backend=self.backend,
            timeout=self.timeout,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
        )


def step_count(optimizer: torch.optim.Optimizer, parameter: Tensor, step: int) -> Tensor:
    """AdamW's `step` tensor of a parameter, where its kernel expects it: if fused, on the parameter's device."""
    return torch.tensor(float(step), device=parameter.device if optimizer.defaults.get("fused") else "cpu")


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and values of the trained parameters."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of the whole parameter; ZeRO-3 leaves an empty tensor and stores the shape separately."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def moments_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Tensors of the parameter's shape in the optimiser's state.

    Raises:
        UserError: there are tensors of another shape.
    """
    tensors = {name: v for name, v in optimizer.state.get(parameter, {}).items() if isinstance(v, Tensor)}
    for name, value in tensors.items():
        if value.shape != parameter.shape and value.numel() > 1:
            raise UserError(
                f"{type(optimizer).__name__} keeps '{name}' {tuple(value.shape)} for a parameter {tuple(parameter.shape)}; "
                "checkpoints hold state of the parameter's own shape only: choose another optim.optimizer"
            )
    return {name: value for name, value in tensors.items() if name != "step" and value.shape == parameter.shape}


def flat(value: Tensor) -> Tensor:
    """This rank's elements of a tensor, as a one-dimensional view."""
    return (value.to_local() if isinstance(value, DTensor) else value).view(-1)
