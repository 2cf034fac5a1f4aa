"""The settings of `python -m vita_audio_pl.benchmark`."""

from dataclasses import dataclass, field

from vita_audio_pl.benchmarking.data_settings import DataBenchmark
from vita_audio_pl.benchmarking.decoding_settings import DecodingProtocol, DecodingSize
from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.benchmarking.trainers_settings import TrainersBenchmark
from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.fields import setting


@dataclass
class BenchmarkConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.benchmark`."""

    benchmark_size: TrainingSize = field(default_factory=TrainingSize)
    decoding_size: DecodingSize = field(default_factory=DecodingSize)
    decoding: DecodingProtocol = field(default_factory=DecodingProtocol)
    engine: DataBenchmark = field(default_factory=DataBenchmark)  # of what=data
    trainers: TrainersBenchmark = field(default_factory=TrainersBenchmark)  # of what=trainers
    what: str = setting(
        "training",
        "what to measure: training, decoding, data or trainers",
        choices=("training", "decoding", "data", "trainers"),
        common=True,
    )
    stages: list[str] = setting(
        ["mtp10", "sft"],
        "mtp1, mtp10: frozen backbone; sft: all trains",
        choices=("mtp1", "mtp10", "sft"),
        filled=True,
    )
    objectives: list[str] = setting(["served_slots"], "objectives to measure beside every_head")
    naive: bool = setting(True, "also measure the naive step, which stores all logits")
    liger: bool = setting(False, "also measure every_head with Liger's kernel (CUDA)")
    repetitions: int = setting(3, "repetitions of each measurement", at_least=1)
    attention: str = setting(
        "per_document",
        "attention kernel: per_document or sdpa; flex or flash on a GPU",
        choices=("per_document", "sdpa", "flex", "flash"),
    )
    device: str = setting("cpu", "cpu or cuda", choices=("cpu", "cuda"), common=True)
    dtype: str = setting("float32", "float32 or bfloat16", choices=("float32", "bfloat16"), common=True)
    chunk_rows: int = setting(512, "rows whose logits exist at a time", at_least=1)
    threads: int = setting(1, "CPU threads", at_least=1, common=True)
    seed: int = setting(0, "random seed", at_least=0)
    peak_tflops: float | None = setting(None, "peak TFLOP/s of the device, for MFU; null = no MFU", above=0)
    output: str | None = setting(None, "JSON file for the results (for decoding, a folder); null = none", common=True)
