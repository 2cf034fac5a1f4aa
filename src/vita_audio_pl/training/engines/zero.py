"""DeepSpeed ZeRO: stage 2 shards gradients and moments, stage 3 parameters too; on GPUs, or on CPUs over gloo."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.engines.base import WEIGHT, Engine, Held, step_count, trained_parameters
from vita_audio_pl.training.engines.kinds import DeepSpeed
from vita_audio_pl.training.engines.precision import DeepSpeedWeights
from vita_audio_pl.training.settings import TrainerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's state of a parameter."""


class ZeroEngine(Engine):
    """DeepSpeed with our AdamW and its groups; the engine clips gradients itself, between backward pass and step."""

    def __init__(self, settings: TrainerConfig, zero: DeepSpeed) -> None:
        super().__init__(settings)
        # an all-reduce through shared memory that is compiled at the first start: gloo does not need it, and if the
        # compilation is killed it leaves a lock that every later start waits for
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._strategy = _AnyDeviceDeepSpeedStrategy(
            stage=zero.stage,
            offload_optimizer=zero.offload,
            offload_parameters=zero.offload and zero.stage == 3,
            process_group_backend=self.backend,
            timeout=self.timeout,
            logging_level=logging.WARNING,
            logging_batch_size_per_gpu=settings.rows_per_device or 1,  # for DeepSpeed's own log only
        )

        config = self._strategy.config
        assert config is not None  # Lightning has created it from the arguments
        # micro-batches are summed in float32, not in the model's bfloat16; ranks exchange bfloat16, at half the traffic
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        if zero.offload:  # torch's fused AdamW also runs on the host, and needs no compiler there
            config["zero_force_ds_cpu_optimizer"] = False

    def precision(self) -> Precision:
        return DeepSpeedWeights(self.settings.precision)  # type: ignore[arg-type]  # `check_precision` knows it

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

    @property
    def copies(self) -> None:
        return None

    def held(self, model: nn.Module, optimizer: Any) -> dict[str, Held]:
        kinds = (None, *MOMENTS) if _inner(optimizer).state else (None,)
        _link(optimizer, moments=len(kinds) > 1)
        found = {}
        for name, parameter in trained_parameters(model):
            start, tensors = _range(parameter, kinds)
            found[name] = Held(start, {kind or WEIGHT: value for kind, value in zip(kinds, tensors, strict=True)})
        return found

    def expect(self, model: nn.Module, optimizer: Any, kinds: Mapping[str, Sequence[str]], step: int) -> None:
        if not any(kinds.values()):
            return
        inner = _inner(optimizer)
        for flat in _partitions(optimizer):
            state = inner.state[flat]
            for name in MOMENTS:
                state.setdefault(name, torch.zeros_like(flat))
            state["step"] = step_count(inner, flat, step)

    def overwritten(self, optimizer: Any) -> None:
        if not hasattr(optimizer, "fp32_partitioned_groups_flat"):
            optimizer.update_lp_params()
            return
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:  # small parameters that every rank has whole
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one
            raise UserError(
                f"trainer={self.settings.name} keeps Adam's moments, and optim.optimizer is {type(optimizer).__name__}; choose "
                "trainer=fsdp2, or optim=adamw"
            )

    def clip(self, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        return None

    def norm_of_last_step(self, module: nn.Module) -> Tensor | float | None:
        norm: Tensor | float | None = self._strategy.deepspeed_engine.get_global_grad_norm()
        return norm

    def left_out_last_step(self) -> bool:
        """DeepSpeed skips non-finite steps; it does not detect spikes."""
        return not self._strategy.deepspeed_engine.was_step_applied()


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """Our optimiser inside DeepSpeed's; it holds this rank's flattened partitions."""
    inner: torch.optim.Optimizer = optimizer.optimizer
    return inner


def _partitions(optimizer: Any) -> list[Tensor]:
    """This rank's flattened fp32 weights; between steps stage 3 removes them from the optimiser's groups."""
    stage3: list[Tensor] | None = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    return list(optimizer.single_partition_of_fp32_groups if stage3 is None else stage3)


def _link(optimizer: Any, moments: bool) -> None:
    """Let stage 2 find the moments of all groups; by default it looks after the first group's step only."""
    if moments and hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _range(parameter: Any, kinds: Sequence[str | None]) -> tuple[int, list[Tensor]]:
    """First element of this rank's fp32 range of a parameter, and the range of the weight (None) or of moments."""
    if not hasattr(parameter, "ds_id"):  # stage 2
        mapping = parameter._hp_mapping
        if mapping is None:
            return 0, [torch.empty(0) for _ in kinds]
        return mapping.lp_fragment_address.start, [mapping.get_hp_fragment(kind) for kind in kinds]
    found = []
    for kind in kinds:
        partition, _ = parameter._z3_optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=kind
        )
        start = partition.numel() * torch.distributed.get_rank()
        found.append(partition[: max(0, parameter.ds_numel - start)])  # the last ranks' shares are padded
    return min(start, parameter.ds_numel), found


class _AnyDeviceDeepSpeedStrategy(DeepSpeedStrategy):
    """Lightning's strategy without its refusal of CPUs, on which DeepSpeed runs as well."""

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
