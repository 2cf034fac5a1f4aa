"""Results of the data benchmark as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from vita_audio_pl.benchmarking.data import Figure
from vita_audio_pl.benchmarking.data_settings import DataBenchmark
from vita_audio_pl.storage.files import write_output_json


def figures_table(figures: Sequence[Figure]) -> Table:
    """One row per measurement, with its target."""
    table = Table(title="data engine", title_justify="left")
    for column in ("figure", "measured", "goal", "CPU s"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for figure in figures:
        cpu = "" if figure.cpu_seconds is None else f"{figure.cpu_seconds:.2f}"
        table.add_row(figure.name, f"{figure.value:,.2f} {figure.unit}", figure.goal, cpu)
    return table


def write_figures(figures: Sequence[Figure], options: DataBenchmark, path: Path | str) -> None:
    """All figures as JSON, with the settings they were measured under."""
    record = {"format": 1, "settings": asdict(options), "figures": [asdict(figure) for figure in figures]}
    write_output_json(path, record)
