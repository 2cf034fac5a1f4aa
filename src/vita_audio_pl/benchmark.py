"""`python -m vita_audio_pl.benchmark`: speed of a training step, of decoding, and of reading data."""

from pathlib import Path

from vita_audio_pl.benchmarking.settings import BenchmarkConfig
from vita_audio_pl.config.entry import run_entry_point


def benchmark(config: BenchmarkConfig) -> None:
    """Run the benchmark and show its tables."""
    import torch

    from vita_audio_pl.benchmarking.show import training_table, write_results
    from vita_audio_pl.benchmarking.training import benchmark_training
    from vita_audio_pl.config.screen import screen
    from vita_audio_pl.storage.files import output_file

    if config.output is not None and config.what != "decoding":
        output_file(config.output)  # an unwritable output is reported before measuring
    torch.set_num_threads(config.threads)
    console = screen()
    if config.what == "data":
        from vita_audio_pl.benchmarking.data import benchmark_data
        from vita_audio_pl.benchmarking.data_show import figures_table, write_figures

        figures = benchmark_data(config.engine)
        console.print(figures_table(figures))
        if config.output is not None:
            write_figures(figures, config.engine, config.output)
        return
    if config.what == "trainers":
        from vita_audio_pl.benchmarking.trainers import benchmark_trainers, trainers_table, write_paces

        paces = benchmark_trainers(config.trainers, config.paths.data, Path(config.paths.runs), console.print)
        console.print(trainers_table(paces, config.trainers))
        if config.output is not None:
            write_paces(paces, config.trainers, config.output)
        return
    if config.what == "decoding":
        from vita_audio_pl.benchmarking.decoding_run import run_decoding_benchmark

        run_decoding_benchmark(
            config.decoding,
            config.decoding_size,
            device=config.device,
            dtype=getattr(torch, config.dtype),
            folder=Path(config.output or f"{config.paths.runs}/benchmark/decoding"),
            console=console,
        )
        return
    results = []
    for stage in config.stages:
        result = benchmark_training(
            stage,
            config.benchmark_size,
            objectives=config.objectives,
            naive=config.naive,
            liger=config.liger,
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
