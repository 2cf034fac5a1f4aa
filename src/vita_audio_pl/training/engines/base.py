"""What every engine offers; this one keeps the whole model on each device (one process, or DDP)."""

import lightning as L
import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.training.engines.precision import check_precision, plain_precision
from vita_audio_pl.training.settings import TrainerConfig


class Engine:
    """Strategy of a run, and access to whole parameters and moments under it.

    All methods that take a parameter are collective: every rank calls them, in the same order.
    """

    def __init__(self, settings: TrainerConfig) -> None:
        check_precision(settings.precision)
        self.settings = settings

    @property
    def backend(self) -> str:
        """Process group: gloo on CPUs, NCCL on GPUs."""
        return "gloo" if self.settings.accelerator == "cpu" else "nccl"

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
        if self.settings.engine == "single":
            return "auto"
        # the only buffers are the rotary frequencies, the same on all ranks
        return DDPStrategy(process_group_backend=self.backend, gradient_as_bucket_view=True, broadcast_buffers=False)

    def shard(self, model: SpeechLM, module: L.LightningModule) -> None:
        """Spread `model` over the devices, in place, before it is moved to them."""

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Whole value, in the precision that the optimiser updates."""
        return parameter.detach()

    def moments(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Whole moments of a trained parameter, the tensors of its shape in the optimiser's state; none before step 1.

        Raises:
            UserError: the optimiser keeps tensors of another shape, which a checkpoint could not restore.
        """
        state = optimizer.state.get(parameter, {})
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.numel() > 1}
        for name, value in tensors.items():
            if value.shape != parameter.shape:
                raise UserError(
                    f"{type(optimizer).__name__} keeps '{name}' {tuple(value.shape)} for a parameter {tuple(parameter.shape)}; "
                    "checkpoints hold state of the parameter's own shape only: choose another optim.optimizer"
                )
        return {
            name: value for name, value in state.items() if isinstance(value, Tensor) and value.shape == parameter.shape
        }

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimiser whose state this engine cannot save and restore."""

    def load_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Overwrite a parameter with a whole value."""
        with torch.no_grad():
            parameter.copy_(value)

    def load_moments(
        self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, values: dict[str, Tensor], step: int
    ) -> None:
        """Overwrite a trained parameter's optimiser state with whole moments after `step` steps."""
        optimizer.state[parameter] = {
            "step": step_count(optimizer, parameter, step),
            **{name: value.to(parameter).clone() for name, value in values.items()},
        }

    def clip(self, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor | None:
        """Clip the gradients by their norm over all ranks, and return that norm; None where the engine does it later."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def norm_of_last_step(self, module: nn.Module) -> Tensor | float | None:
        """Gradient norm before clipping of the step just done, over all ranks."""
        return module.grad_norm  # type: ignore[return-value]

    def left_out_last_step(self) -> bool:
        """Whether a bad step just done has changed nothing; `drop_gradients` sees to it."""
        return True

    def drop_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the coming optimiser step change nothing, not even its moments."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def step_count(optimizer: torch.optim.Optimizer, parameter: Tensor, step: int) -> Tensor:
    """AdamW's `step` of a parameter, where its kernel reads it: the fused one on the parameter's device."""
    return torch.tensor(float(step), device=parameter.device if optimizer.defaults.get("fused") else "cpu")
