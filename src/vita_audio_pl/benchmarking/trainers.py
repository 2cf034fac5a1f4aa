"""Cost of several processes and of checkpoints: runs of the train command in turn, measured by its own metrics."""

import csv
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from vita_audio_pl.benchmarking.trainers_settings import TrainersBenchmark
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import write_output_json

LOG_EVERY = 10


@dataclass
class Pace:
    """Readings of the runs with one number of processes, each over `LOG_EVERY` steps; the first of a run is left out.

    Attributes:
        tokens_per_second: of all processes.
        checkpoint_wait, data_wait: shares of elapsed time.
    """

    processes: int
    tokens_per_second: list[float] = field(default_factory=list)
    checkpoint_wait: list[float] = field(default_factory=list)
    data_wait: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Tokens a second."""
        return statistics.median(self.tokens_per_second)

    @property
    def checkpoint_share(self) -> float:
        """Share of the training time that waited for checkpoints: every reading is of as many steps."""
        seconds = [1 / rate for rate in self.tokens_per_second]
        return sum(map(float.__mul__, self.checkpoint_wait, seconds)) / sum(seconds)


def benchmark_trainers(
    settings: TrainersBenchmark, data: str, runs: Path, progress: Callable[[str], None]
) -> list[Pace]:
    """Trains stage align again and again on the prepared spoken world; the runs are removed afterwards.

    Args:
        data: the folder `paths.data`; runs: folder whose disk the checkpoints are written to.
        progress: gets a line for each run.

    Raises:
        UserError: a run failed, as without prepared data; its last line is in the sentence.
    """
    paces = [Pace(processes) for processes in settings.processes]
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs, prefix="benchmark-") as folder:
        for turn in range(settings.rounds):
            for pace in paces:
                progress(f"round {turn + 1}: {pace.processes} processes, {settings.steps} steps")
                run = f"{turn}-{pace.processes}"
                _train(settings, pace.processes, data, Path(folder), run)
                _read(Path(folder) / run / "align" / "metrics.csv", pace)
    return paces


def _train(settings: TrainersBenchmark, processes: int, data: str, runs: Path, run: str) -> None:
    trainer = ["trainer=cpu"] if processes == 1 else [f"trainer={settings.trainer}", f"trainer.devices={processes}"]
    command = [
        *(sys.executable, "-m", "vita_audio_pl.train", "stage=align", *trainer, "logger=csv"),
        *(f"paths.data={data}", f"paths.runs={runs}", f"run_name={run}"),
        *(f"trainer.threads={settings.threads // processes}", f"stage.steps={settings.steps}"),
        *(f"callbacks.log_every={LOG_EVERY}", f"callbacks.save_every={settings.save_every}"),
        *settings.overrides,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"training with {processes} processes ended with status {done.returncode}: {' '.join(last)}")


def _read(metrics: Path, into: Pace) -> None:
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["tokens_per_second"]]
    for row in rows[1:]:
        into.tokens_per_second.append(float(row["tokens_per_second"]))
        into.checkpoint_wait.append(float(row["checkpoint_wait_share"]))
        into.data_wait.append(float(row["data_wait_share"]))


def trainers_table(paces: list[Pace], settings: TrainersBenchmark) -> Table:
    """One row for each number of processes."""
    title = f"stage align, {settings.threads} threads in all, a checkpoint every {settings.save_every} steps"
    table = Table(title=title, title_justify="left")
    for column in ("processes", "tokens/s", "time beside the first", "waits for checkpoints", "waits for data"):
        table.add_column(column, justify="right")
    for pace in paces:
        table.add_row(
            str(pace.processes),
            f"{pace.median:,.0f}",
            f"{paces[0].median / pace.median:.2f}",
            f"{pace.checkpoint_share:.2%}",
            f"{statistics.mean(pace.data_wait):.2%}",
        )
    return table


def write_paces(paces: list[Pace], settings: TrainersBenchmark, path: Path | str) -> None:
    """All readings as JSON, with the settings they were taken under."""
    record = {"format": 1, "settings": asdict(settings), "paces": [asdict(pace) for pace in paces]}
    write_output_json(path, record)
