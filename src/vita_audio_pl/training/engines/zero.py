"""DeepSpeed ZeRO: stage 2 shards gradients and moments, stage 3 parameters too; on GPUs, or on CPUs over gloo."""

import logging
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.engines.base import Engine, step_count
from vita_audio_pl.training.engines.precision import DeepSpeedWeights
from vita_audio_pl.training.settings import TrainerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's state of a parameter."""


class ZeroEngine(Engine):
    """DeepSpeed with our AdamW and its groups; the engine clips by itself, between the backward pass and the step."""

    def __init__(self, settings: TrainerConfig) -> None:
        super().__init__(settings)
        # an all-reduce through shared memory, compiled at the first start: gloo does without, and a compilation that is
        # killed leaves a lock that every later start waits for
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._strategy = _AnyDeviceDeepSpeedStrategy(
            stage=settings.zero_stage,
            offload_optimizer=settings.offload,
            offload_parameters=settings.offload and settings.zero_stage == 3,
            process_group_backend=self.backend,
            logging_level=logging.WARNING,
            logging_batch_size_per_gpu=settings.rows_per_device or 1,  # for DeepSpeed's own log only
        )

        config = self._strategy.config
        assert config is not None  # Lightning has made it of the arguments
        # micro-batches add up in float32, not in the model's bfloat16; ranks exchange bfloat16, at half the traffic
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        if settings.offload:  # torch's fused AdamW runs on the host, too, and needs no compiler there
            config["zero_force_ds_cpu_optimizer"] = False

    def precision(self) -> Precision:
        return DeepSpeedWeights(self.settings.precision)  # type: ignore[arg-type]

    def averaging(self, accumulate: int) -> int:
        return super().averaging(accumulate) * accumulate  # Lightning and DeepSpeed both divide by it

    def strategy(self) -> Strategy:
        return self._strategy

    def weight(self, parameter: nn.Parameter) -> Tensor:
        if parameter.requires_grad:
            whole: Tensor = safe_get_full_fp32_param(parameter)
            return whole
        with GatheredParameters([parameter]):
            return parameter.detach().clone()

    def moments(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
        if not _inner(optimizer).state:
            return {}
        _link(optimizer)
        return {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one
            raise UserError(
                f"trainer={self.settings.name} keeps Adam's moments, and optim.optimizer is {type(optimizer).__name__}; choose "
                "trainer=fsdp2, or optim=adamw"
            )

    def load_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        with GatheredParameters([parameter], modifier_rank=0), torch.no_grad():  # what the forward pass reads
            parameter.copy_(value)
        _set_whole(parameter, value, None)  # what the optimiser updates

    def load_moments(
        self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, values: dict[str, Tensor], step: int
    ) -> None:
        for flat in _partitions(optimizer):
            state = _inner(optimizer).state[flat]
            for name in MOMENTS:
                state.setdefault(name, torch.zeros_like(flat))
            state["step"] = step_count(_inner(optimizer), flat, step)
        _link(optimizer)
        for name, value in values.items():
            _set_whole(parameter, value, name)

    def clip(self, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        return None

    def norm_of_last_step(self, module: nn.Module) -> Tensor | float | None:
        norm: Tensor | float | None = self._strategy.deepspeed_engine.get_global_grad_norm()
        return norm

    def left_out_last_step(self) -> bool:
        """DeepSpeed leaves out what is not finite; it knows nothing of spikes."""
        return not self._strategy.deepspeed_engine.was_step_applied()


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """Our optimiser inside DeepSpeed's; it holds this rank's flattened partitions."""
    inner: torch.optim.Optimizer = optimizer.optimizer
    return inner


def _partitions(optimizer: Any) -> list[Tensor]:
    """This rank's flattened fp32 weights; between steps stage 3 takes them out of the optimiser's groups."""
    stage3: list[Tensor] | None = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    return list(optimizer.single_partition_of_fp32_groups if stage3 is None else stage3)


def _link(optimizer: Any) -> None:
    """Let stage 2 find the moments of all groups; by itself it looks when the first group alone has made its step."""
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _set_whole(parameter: Any, value: Tensor, moment: str | None) -> None:
    """Copy this rank's part of a whole value into the fp32 partition: of the weight, or of a moment."""
    if not hasattr(parameter, "ds_id"):
        parameter.set_full_hp_param(value, moment)
        return
    # DeepSpeed's own setter fails where the ranks do not divide the number of elements
    stage3 = parameter._z3_optimizer
    partition, _ = stage3._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=moment)
    start = partition.numel() * torch.distributed.get_rank()
    mine = value.flatten()[start : start + partition.numel()]
    partition.data[: mine.numel()].copy_(mine)


class _AnyDeviceDeepSpeedStrategy(DeepSpeedStrategy):
    """Lightning's strategy, which refuses CPUs although DeepSpeed runs on them."""

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0) if self._on_cpu else super().root_device

    def setup_environment(self) -> None:
        if not self._on_cpu:
            super().setup_environment()
            return
        assert self.accelerator is not None  # a CPU's
        self.accelerator.setup_device(torch.device("cpu"))
        self.setup_distributed()

    def setup_distributed(self) -> None:
        if not self._on_cpu:
            super().setup_distributed()
            return
        self.set_world_ranks()
        self._init_deepspeed_distributed()
