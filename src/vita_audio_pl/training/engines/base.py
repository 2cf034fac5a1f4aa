"""What every engine offers; those here keep the whole model on each device (one process, or DDP)."""

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
    """A rank's range of a parameter, flattened.

    Attributes:
        start: its first element.
        tensors: `WEIGHT`, in the precision that the optimiser updates, and moments by the optimiser's names: one dimension,
            the memory that is in use.
    """

    start: int
    tensors: dict[str, Tensor]


class Engine:
    """Strategy of a run, and access to whole parameters and moments under it.

    `weight` and `clip` are collective: every rank calls them, in the same order.

    Attributes:
        beside: models of the same parameters, not updated by the optimiser, that checkpoints keep, by kind.
    """

    def __init__(self, settings: TrainerConfig) -> None:
        check_precision(settings.precision)
        self.settings = settings
        self.beside: dict[str, Callable[[], nn.Module]] = {}

    @property
    def backend(self) -> str:
        """Process group: gloo on CPUs, NCCL on GPUs."""
        return "gloo" if self.settings.accelerator == "cpu" else "nccl"

    @property
    def timeout(self) -> timedelta:
        """How long a collective waits for the other ranks."""
        return timedelta(seconds=self.settings.timeout_seconds)

    def precision(self) -> Precision:
        """Lightning's plugin; an engine that casts by itself takes the one that does nothing."""
        return plain_precision(self.settings.precision, "cpu" if self.settings.accelerator == "cpu" else "cuda")

    @property
    def fused(self) -> bool | None:
        """AdamW as one kernel; on GPUs torch's own choice makes temporaries as large as what is updated."""
        return True if self.settings.accelerator == "gpu" else None

    def averaging(self, accumulate: int) -> int:
        """By what the engine divides a loss whose global value is a sum: the ranks, and the accumulated batches."""
        return self.settings.world_size * accumulate

    def strategy(self) -> Strategy | str:
        """Lightning's strategy."""
        return "auto"

    def begin_batch(self, model: SpeechLM, ends_step: bool) -> None:
        """Called before a batch of a step; `ends_step`: it is the last one."""

    def shard(self, model: SpeechLM, module: L.LightningModule) -> None:
        """Spread `model` over the devices, in place, before it is moved to them."""

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Whole value, in the precision that the optimiser updates."""
        return parameter.detach()

    @property
    def copies(self) -> Any:
        """Process group of the ranks that hold the same as this one; None where no other does."""
        group = torch.distributed.group.WORLD if torch.distributed.is_initialized() else None
        return group if group is not None and torch.distributed.get_world_size(group) > 1 else None

    def held(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Held]:
        """What this rank holds of every parameter that trains, by name; moments before step 1 are none. Not collective.

        Raises:
            UserError: the optimiser keeps tensors of another shape, which a checkpoint could not restore.
        """
        found = {}
        others = {kind: dict(beside().named_parameters()) for kind, beside in self.beside.items()}
        for name, parameter in trained_parameters(model):
            tensors = {WEIGHT: parameter.detach(), **moments_of(optimizer, parameter)}
            tensors |= {kind: beside[name].detach() for kind, beside in others.items()}
            found[name] = Held(self.first_element(parameter), {kind: flat(value) for kind, value in tensors.items()})
        return found

    def first_element(self, parameter: nn.Parameter) -> int:
        """Where in the flattened parameter this rank's elements begin."""
        return 0

    def expect(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, kinds: Mapping[str, Sequence[str]], step: int
    ) -> None:
        """Make place for moments, where there are none yet, before they are read into what `held` gives.

        Args:
            kinds: names of the moments by parameter; step: steps that the optimiser has done.
        """
        for name, parameter in trained_parameters(model):
            if kinds[name]:
                state = optimizer.state[parameter]
                state["step"] = step_count(optimizer, parameter, step)
                for kind in kinds[name]:
                    if kind not in state:
                        state[kind] = torch.empty_like(parameter.detach())

    def overwritten(self, optimizer: torch.optim.Optimizer) -> None:
        """Take over what was written into the tensors of `held`. Collective."""

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimiser whose state this engine cannot save and restore."""

    def clip(self, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor | None:
        """Clip the gradients by their norm over all ranks, and return that norm; None where the engine does it later."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def norm_of_last_step(self, module: nn.Module) -> Tensor | float | None:
        """Gradient norm before clipping of the step just done, over all ranks."""
        return module.grad_norm  # type: ignore[return-value]  # SpeechLMModule keeps it

    def left_out_last_step(self) -> bool:
        """Whether a bad step just done has changed nothing; `drop_gradients` sees to it."""
        return True

    def drop_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the coming optimiser step change nothing, not even its moments."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


class DDPEngine(Engine):
    """Every rank has the whole model and a share of the rows; gradients are averaged."""

    def strategy(self) -> Strategy:
        # the only buffers are the rotary frequencies, the same on all ranks
        return DDPStrategy(
            process_group_backend=self.backend,
            timeout=self.timeout,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
        )


def step_count(optimizer: torch.optim.Optimizer, parameter: Tensor, step: int) -> Tensor:
    """AdamW's `step` of a parameter, where its kernel reads it: the fused one on the parameter's device."""
    return torch.tensor(float(step), device=parameter.device if optimizer.defaults.get("fused") else "cpu")


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that train."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter; ZeRO-3 leaves an empty one behind and keeps the shape aside."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def moments_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Tensors of a parameter's shape in the optimiser's state.

    Raises:
        UserError: it keeps tensors of another shape.
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
    """This rank's elements of a tensor in one dimension, in the same memory."""
    return (value.to_local() if isinstance(value, DTensor) else value).view(-1)
