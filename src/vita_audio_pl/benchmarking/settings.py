"""The settings of `python -m vita_audio_pl.benchmark`."""

from dataclasses import dataclass, field

from vita_audio_pl.benchmarking.data_settings import DataBenchmark
from vita_audio_pl.benchmarking.decoding_settings import DecodingProtocol, DecodingSize
from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.benchmarking.trainers_settings import TrainersBenchmark
from vita_audio_pl.config.schema import PathsConfig


@dataclass
class BenchmarkConfig:
    """Everything that `python -m vita_audio_pl.benchmark` can be told."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    benchmark_size: TrainingSize = field(default_factory=TrainingSize)
    decoding_size: DecodingSize = field(default_factory=DecodingSize)
    decoding: DecodingProtocol = field(default_factory=DecodingProtocol)
    engine: DataBenchmark = field(default_factory=DataBenchmark)  # of what=data
    trainers: TrainersBenchmark = field(default_factory=TrainersBenchmark)  # of what=trainers
    what: str = "training"  # or decoding, data, trainers
    stages: list[str] = field(default_factory=lambda: ["mtp10", "sft"])  # mtp1, mtp10: frozen backbone; sft: all trains
    objectives: list[str] = field(default_factory=lambda: ["served_slots"])  # besides every_head
    naive: bool = True  # also the plain step, which makes every logit
    liger: bool = False  # also every_head with Liger's kernel; CUDA only
    repetitions: int = 3
    attention: str = "per_document"  # or sdpa; flex and flash on a GPU
    device: str = "cpu"
    dtype: str = "float32"  # or bfloat16
    chunk_rows: int = 512  # rows whose logits exist at a time
    threads: int = 1
    seed: int = 0
    peak_tflops: float | None = None  # of the device, for the share of it that is used
    output: str | None = None  # JSON file for the numbers; for those of decoding, a folder
