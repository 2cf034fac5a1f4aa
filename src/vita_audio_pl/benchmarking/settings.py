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
        "training", "or decoding, data, trainers", choices=("training", "decoding", "data", "trainers"), common=True
    )
    stages: list[str] = setting(
        ["mtp10", "sft"], "mtp1, mtp10: frozen backbone; sft: all trains", choices=("mtp1", "mtp10", "sft")
    )
    objectives: list[str] = setting(["served_slots"], "besides every_head")
    naive: bool = setting(True, "also the plain step, which makes every logit")
    liger: bool = setting(False, "also every_head with Liger's kernel; CUDA only")
    repetitions: int = setting(3, "", at_least=1)
    attention: str = setting(
        "per_document", "or sdpa; flex and flash on a GPU", choices=("per_document", "sdpa", "flex", "flash")
    )
    device: str = setting("cpu", "", choices=("cpu", "cuda"), common=True)
    dtype: str = setting("float32", "or bfloat16", choices=("float32", "bfloat16"), common=True)
    chunk_rows: int = setting(512, "rows whose logits exist at a time", at_least=1)
    threads: int = setting(1, "", at_least=1, common=True)
    seed: int = setting(0, "", at_least=0)
    peak_tflops: float | None = setting(
        None, "of the device, for the share of it that is used; null = no share", above=0
    )
    output: str | None = setting(
        None, "JSON file for the numbers; for those of decoding, a folder; null = none", common=True
    )
