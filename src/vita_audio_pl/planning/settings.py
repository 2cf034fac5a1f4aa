"""The settings of `python -m vita_audio_pl.plan`: those of training, and what a plan needs besides."""

from dataclasses import dataclass, field

from vita_audio_pl.config.schema import TrainConfig, require


@dataclass
class RowsConfig:
    """What packed rows are like, for work that depends on it."""

    document_tokens: int = 400  # tokens of a conversation, on average; attention looks no further
    labelled: float = 0.6  # share of a conversation, its end, that is trained on
    audio: float = 0.7  # share of the labelled tokens that are codes

    def check(self) -> None:
        require(self.document_tokens >= 2, f"rows.document_tokens is {self.document_tokens}: it must be at least 2")
        for name in ("labelled", "audio"):
            require(0 <= getattr(self, name) <= 1, f"rows.{name} is {getattr(self, name)}: it must lie in [0, 1]")


@dataclass
class PlanConfig(TrainConfig):
    """Everything that `python -m vita_audio_pl.plan` can be told: training's settings, and these."""

    devices: int | None = None  # GPUs in all; null = trainer.devices x trainer.num_nodes
    gpu: str = "h100"  # of the table in training/gpus.py
    gpu_memory: float | None = None  # GiB of one; null = the table's
    peak_tflops: float | None = None  # of one, dense bfloat16; null = the table's
    mfu: float = 0.4  # share of the peak that training reaches
    price: float | None = 2.5  # of one GPU for an hour; null = no cost is shown
    codes_per_second: float = 12.5  # of the codec, for hours of audio
    text_entries: int | None = None  # of the text tokenizer; null = the prepared data's, else Qwen2.5's 151,665
    rows: RowsConfig = field(default_factory=RowsConfig)
    output: str | None = None  # JSON file for the numbers

    def check(self) -> None:
        require(0 < self.mfu <= 1, f"mfu is {self.mfu}: it must lie above 0 and at most at 1")
        require(self.devices is None or self.devices >= 1, f"devices is {self.devices}: it must be at least 1")
        require(self.price is None or self.price >= 0, f"price is {self.price}: it cannot be negative")
        require(self.codes_per_second > 0, f"codes_per_second is {self.codes_per_second}: it must be positive")
