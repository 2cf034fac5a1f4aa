"""Engines: how a model is spread over devices, and how its whole parameters are read and written there."""

import os

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.settings import TrainerConfig


def build_engine(settings: TrainerConfig) -> Engine:
    """The engine that `trainer.engine` names.

    Raises:
        UserError: it is not installed.
    """
    if settings.engine == "fsdp2":
        from vita_audio_pl.training.engines.fsdp2 import FSDP2Engine

        return FSDP2Engine(settings)
    if settings.engine == "deepspeed":
        if settings.accelerator == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        try:
            from vita_audio_pl.training.engines.zero import ZeroEngine
        except ImportError as error:
            raise UserError(
                f"trainer={settings.name} needs DeepSpeed, which cannot be imported ({error}); "
                "pip install 'vita-audio-pl[deepspeed]', or choose trainer=fsdp2"
            ) from error
        return ZeroEngine(settings)
    return Engine(settings)


__all__ = ["Engine", "build_engine"]
