"""`python -m vita_audio_pl.benchmark`: what a training step costs, in time and memory."""

import sys
from dataclasses import dataclass, field

from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.config.schema import PathsConfig


@dataclass
class BenchmarkConfig:
    """Everything that `python -m vita_audio_pl.benchmark` can be told."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    benchmark_size: TrainingSize = field(default_factory=TrainingSize)
    what: str = "training"
    stages: list[str] = field(default_factory=lambda: ["mtp10", "sft"])  # mtp10: frozen backbone; sft: all trains
    objectives: list[str] = field(default_factory=lambda: ["served_slots"])  # besides every_head
    naive: bool = True  # also the plain step, which makes every logit
    repetitions: int = 3
    attention: str = "per_document"  # or sdpa; flex and flash on a GPU
    device: str = "cpu"
    dtype: str = "float32"  # or bfloat16
    chunk_rows: int = 512  # rows whose logits exist at a time
    threads: int = 1
    seed: int = 0
    peak_tflops: float | None = None  # of the device, for the share of it that is used
    output: str | None = None  # JSON file for the numbers


def benchmark(config: BenchmarkConfig) -> None:
    """Measures stage after stage and shows a table of each."""
    import torch
    from rich.console import Console

    from vita_audio_pl.benchmarking.show import training_table, write_results
    from vita_audio_pl.benchmarking.training import benchmark_training
    from vita_audio_pl.errors import UserError

    if config.what != "training":
        raise UserError(f"what={config.what} is no benchmark; it must be training")
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype is '{config.dtype}'; it must be float32 or bfloat16")
    torch.set_num_threads(config.threads)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    results = []
    for stage in config.stages:
        result = benchmark_training(
            stage,
            config.benchmark_size,
            objectives=config.objectives,
            naive=config.naive,
            repetitions=config.repetitions,
            attention=config.attention,
            device=config.device,
            dtype=getattr(torch, config.dtype),
            chunk_rows=config.chunk_rows,
            seed=config.seed,
        )
        console.print(training_table(result, config.peak_tflops))
        results.append(result)
    if config.output is not None:
        write_results(results, config.benchmark_size, config.output)


def main() -> None:
    run_entry_point(benchmark, "benchmark", BenchmarkConfig)


if __name__ == "__main__":
    main()
