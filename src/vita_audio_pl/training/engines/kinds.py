"""Settings of the engines, each of which builds its own; `conf/trainer/` names one by `_target_`.

Apart from the engines, so that a configuration is read without torch, and planned for without DeepSpeed.
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
    """What every engine's settings offer. One of your own derives from this, or from an engine's below."""

    shards: ClassVar[bool] = False
    """Whether parameters or what belongs to them are spread over the ranks, so that none has a whole model."""

    fills_shards: ClassVar[bool] = False
    """Whether a model without memory can be sharded, and weights be read into its shards."""

    def check_devices(self, trainer: "TrainerConfig") -> None:
        """Refuse devices that the engine cannot use, with a `UserError`."""

    def build(self, trainer: "TrainerConfig") -> "Engine":
        """The engine for these devices and this precision."""
        raise NotImplementedError


@dataclass
class Single(EngineSettings):
    """Of `base.Engine`: one process on one device."""

    def check_devices(self, trainer: "TrainerConfig") -> None:
        if trainer.world_size > 1:
            raise UserError(f"trainer={trainer.name} runs on one device: choose trainer=ddp for more")

    def build(self, trainer: "TrainerConfig") -> "Engine":
        from vita_audio_pl.training.engines.base import Engine

        return Engine(trainer)


@dataclass
class DDP(EngineSettings):
    """Of `base.DDPEngine`: every rank has the whole model."""

    def build(self, trainer: "TrainerConfig") -> "Engine":
        from vita_audio_pl.training.engines.base import DDPEngine

        return DDPEngine(trainer)


@dataclass
class FSDP2(EngineSettings):
    """Of `fsdp2.FSDP2Engine`: parameters, gradients and moments are sharded."""

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
    """Of `zero.ZeroEngine`: DeepSpeed's ZeRO."""

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
