"""Settings of the engines, each of which builds its engine; `conf/trainer/` names them by `_target_`.

Separate from the engines, so that a configuration can be read without torch, and planned for without DeepSpeed.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vita_audio_pl.config.component import Component
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError

if TYPE_CHECKING:
    from vita_audio_pl.training.engines.base import Engine
    from vita_audio_pl.training.settings import TrainerConfig


@dataclass
class EngineSettings(Component):
    """Settings of every engine. Derive your own from this, or from an engine's settings below."""

    shards: ClassVar[bool] = False
    """Whether parameters, gradients or moments are sharded, so that no rank has a whole model."""

    fills_shards: ClassVar[bool] = False
    """Whether a model on the meta device can be sharded first and filled afterwards."""

    def check_devices(self, trainer: "TrainerConfig") -> None:
        """Refuse devices that the engine does not support, with a `UserError`."""

    def build(self, trainer: "TrainerConfig") -> "Engine":
        """Build the engine for these devices and this precision."""
        raise NotImplementedError


@dataclass
class Single(EngineSettings):
    """Settings of `base.Engine`: one process on one device."""

    def check_devices(self, trainer: "TrainerConfig") -> None:
        if trainer.world_size > 1:
            raise UserError(
                f"trainer={trainer.name} runs on one device, and these are {trainer.devices} x {trainer.num_nodes}: choose trainer=ddp "
                "for more, or trainer.devices=1 trainer.num_nodes=1"
            )

    def build(self, trainer: "TrainerConfig") -> "Engine":
        from vita_audio_pl.training.engines.base import Engine

        return Engine(trainer)


@dataclass
class DDP(EngineSettings):
    """Settings of `base.DDPEngine`: every rank has the whole model."""

    def build(self, trainer: "TrainerConfig") -> "Engine":
        from vita_audio_pl.training.engines.base import DDPEngine

        return DDPEngine(trainer)


@dataclass
class FSDP2(EngineSettings):
    """Settings of `fsdp2.FSDP2Engine`: parameters, gradients and moments are sharded."""

    replicas: int = setting(1, "replica groups, each sharding its own copy (HSDP), such as one per node", at_least=1)
    reduce: str = setting(
        "step",
        "step: reduce gradients once a step, keeping unsharded gradients; batch: after every batch",
        choices=("step", "batch"),
    )
    reshard: bool = setting(
        True, "free a block's weights after its forward pass and gather them again for its backward pass"
    )

    shards: ClassVar[bool] = True
    fills_shards: ClassVar[bool] = True

    def check_devices(self, trainer: "TrainerConfig") -> None:
        if trainer.world_size % self.replicas:
            raise UserError(
                f"trainer.engine.replicas={self.replicas} does not divide the {trainer.world_size} devices of "
                f"trainer={trainer.name}"
            )

    def build(self, trainer: "TrainerConfig") -> "Engine":
        from vita_audio_pl.training.engines.fsdp2 import FSDP2Engine

        return FSDP2Engine(trainer, self)


@dataclass
class DeepSpeed(EngineSettings):
    """Settings of `zero.ZeroEngine`: DeepSpeed's ZeRO."""

    stage: int = setting(2, "2 shards optimiser state and gradients; 3 shards parameters too", at_least=2, at_most=3)
    offload: bool = setting(False, "keep optimiser state (at stage 3 also parameters) in CPU memory")

    shards: ClassVar[bool] = True

    def build(self, trainer: "TrainerConfig") -> "Engine":
        """See `EngineSettings`.

        Raises:
            UserError: DeepSpeed is not installed.
        """
        if trainer.accelerator == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        try:
            from vita_audio_pl.training.engines.zero import ZeroEngine
        except ImportError as error:
            raise UserError(
                f"trainer={trainer.name} needs DeepSpeed, which cannot be imported ({error}); "
                "pip install 'vita-audio-pl[deepspeed]', or choose trainer=fsdp2"
            ) from error
        return ZeroEngine(trainer, self)
