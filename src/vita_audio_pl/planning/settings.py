"""Settings of `python -m vita_audio_pl.plan`: those of training, and a few more."""

from dataclasses import dataclass, field

from vita_audio_pl.config.fields import setting
from vita_audio_pl.training.settings import TrainConfig


@dataclass
class RowsConfig:
    """Assumptions about packed rows."""

    document_tokens: int = setting(400, "tokens of a conversation, on average; attention looks no further", at_least=2)
    labelled: float = setting(0.6, "share of a conversation, at its end, that has labels", at_least=0, at_most=1)
    audio: float = setting(0.7, "share of the labelled tokens that are audio codes", at_least=0, at_most=1)


@dataclass
class PlanConfig(TrainConfig):
    """Settings of `python -m vita_audio_pl.plan`, in addition to training's."""

    devices: int | None = setting(
        None, "number of GPUs; null = trainer.devices x trainer.num_nodes", at_least=1, common=True
    )
    gpu: str = setting("h100", "GPU, from the table in training/engines/gpus.py", common=True)
    gpu_memory: float | None = setting(None, "memory of one GPU, GiB; null = the table's", above=0, common=True)
    host_memory: float | None = setting(None, "host memory of one node, GiB; null = not checked", above=0, common=True)
    peak_tflops: float | None = setting(None, "peak of one GPU, dense bfloat16 TFLOP/s; null = the table's", above=0)
    mfu: float = setting(0.4, "share of the peak that training reaches (MFU)", above=0, at_most=1, common=True)
    price: float | None = setting(2.5, "price of one GPU hour; null = no cost shown", at_least=0, common=True)
    codes_per_second: float = setting(12.5, "code rate of the codec, for hours of audio", above=0)
    text_entries: int | None = setting(
        None,
        "text tokens of the vocabulary; null = the prepared data's, else Qwen2.5's 151,665 or Qwen3's 151,669",
        at_least=1,
    )
    rows: RowsConfig = field(default_factory=RowsConfig)
    output: str | None = setting(None, "JSON file for the numbers; null = none", common=True)
