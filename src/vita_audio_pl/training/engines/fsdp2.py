"""FSDP2: every block is a group of its own, gathered when it runs; embeddings, vocabulary layer and final norm, which
the backbone and every head use, are the root group."""

import math
from dataclasses import replace

import lightning as L
import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from vita_audio_pl.models.blocks import blocks
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.training.engines.base import Engine, Held


class FSDP2Engine(Engine):
    """Parameters, gradients and moments are sharded over all ranks; compute is in bfloat16 for `bf16-mixed`."""

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
        mesh = module.device_mesh["data_parallel"]
        # inputs are not cast: hidden states have the embeddings' type, and the batch and its documents, dataclasses that
        # the cast would copy for every block, stay as they are
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if self.settings.precision == "bf16-mixed":
            policy = replace(policy, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)

    def weight(self, parameter: nn.Parameter) -> Tensor:
        return _whole(parameter.detach())

    @property
    def copies(self) -> None:
        return None

    def held(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Held]:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # after a validation the root group is still gathered
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
    """Lightning's strategy with a barrier that gloo knows."""

    def _determine_device_ids(self) -> list[int]:
        return [] if self.root_device.index is None else [self.root_device.index]


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
