"""Results of the training benchmark as tables and files."""

from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.benchmarking.training import LIGER, NAIVE, OURS, TrainingComparison
from vita_audio_pl.storage.files import write_output_json


def training_table(result: TrainingComparison, peak_tflops: float | None = None) -> Table:
    """One row for each way to do the step; peak_tflops: the device's, for the share of it that the step uses."""
    kind = "elapsed s" if result.device.startswith("cuda") else "CPU s"
    table = Table(title=f"{result.stage}: forward and backward", title_justify="left")
    columns = [kind, "times faster", "extra MiB", "share of naive", "held MiB", "TFLOP/s", "loss"]
    for column in ("step", *columns, *(["MFU"] if peak_tflops else [])):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, step in result.steps.items():
        tflops = step.flops / step.seconds / 1e12
        cells = [f"{step.seconds:.2f}", _number(result.times_faster(name)), f"{step.peak_bytes / 2**20:.0f}"]
        cells += [_number(result.memory_share(name)), f"{step.held_bytes / 2**20:.0f}", f"{tflops:.2f}"]
        cells += [f"{step.loss:.6f}", *([f"{tflops / peak_tflops:.1%}"] if peak_tflops else [])]
        table.add_row(_label(name), *cells)
    if result.loss_difference is not None:
        table.caption = f"relative difference of the losses of naive and every_head: {result.loss_difference:.1e}"
    return table


def write_results(results: list[TrainingComparison], size: TrainingSize, path: Path | str) -> None:
    """All numbers as JSON."""
    record = {"format": 1, "size": asdict(size), "results": [asdict(result) for result in results]}
    write_output_json(path, record)


def _label(name: str) -> str:
    return {NAIVE: "naive every_head", OURS: "every_head", LIGER: "every_head, Liger"}.get(name, name)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
