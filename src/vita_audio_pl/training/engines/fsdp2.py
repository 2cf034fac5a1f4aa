"""FSDP2: every block is a group of its own, gathered when it runs; embeddings, vocabulary layer and final norm, which
the backbone and every head use, are the root group."""

import math
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from vita_audio_pl.models.blocks import blocks
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.training.engines.base import Engine, Held
from vita_audio_pl.training.engines.kinds import FSDP2
from vita_audio_pl.training.settings import TrainerConfig


class FSDP2Engine(Engine):
    """Parameters, gradients and moments are sharded; compute is in bfloat16 for `bf16-mixed`.

    Shards span all ranks, or with `replicas` each group of neighbouring ranks (hybrid sharding).
    """

    def __init__(self, trainer: TrainerConfig, settings: FSDP2) -> None:
        super().__init__(trainer)
        self.sharding = settings
        self._mesh: DeviceMesh | None = None
        self._last: bool | None = None

    def precision(self) -> Precision:
        return Precision() if self.settings.precision == "bf16-mixed" else super().precision()

    def strategy(self) -> Strategy:
        return _CPUModelParallelStrategy(
            data_parallel_size=self.settings.world_size,
            tensor_parallel_size=1,
            process_group_backend=self.backend,
            timeout=self.timeout,
        )

    def shard(self, model: SpeechLM, module: L.LightningModule) -> None:
        assert module.device_mesh is not None  # Lightning's strategy has made it
        mesh, replicas = module.device_mesh["data_parallel"], self.sharding.replicas
        if replicas > 1:
            shape, names = (replicas, mesh.size() // replicas), ("replicas", "shards")
            mesh = self._mesh = init_device_mesh(mesh.device_type, shape, mesh_dim_names=names)
        # inputs are not cast: hidden states have the embeddings' dtype, and casting would copy batch and documents
        # (dataclasses) for every block
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if self.settings.precision == "bf16-mixed":
            policy = replace(policy, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=self.sharding.reshard)
        fully_shard(model, mesh=mesh, mp_policy=policy)

    def begin_batch(self, model: SpeechLM, ends_step: bool) -> None:
        if ends_step == self._last:
            return
        self._last = ends_step
        assert isinstance(model, FSDPModule)  # by `shard`
        if self.sharding.reduce == "step":
            model.set_requires_gradient_sync(ends_step)
        else:
            model.set_requires_all_reduce(ends_step)  # across replicas only; within one, every batch is reduced

    def weight(self, parameter: nn.Parameter) -> Tensor:
        return _whole(parameter.detach())

    @property
    def copies(self) -> Any:
        return None if self._mesh is None else self._mesh.get_group("replicas")

    def reshard(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def held(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Held]:
        self.reshard(model)
        return super().held(model, optimizer)

    def first_element(self, parameter: nn.Parameter) -> int:
        assert isinstance(parameter, DTensor)
        _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
        return offset[0] * math.prod(parameter.shape[1:])

    def clip(self, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
        norm = super().clip(module, optimizer, max_norm)
        assert norm is not None
        return _whole(norm)


class _CPUModelParallelStrategy(ModelParallelStrategy):
    """Lightning's strategy with a barrier that gloo supports."""

    def _determine_device_ids(self) -> list[int]:
        return [] if self.root_device.index is None else [self.root_device.index]


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
