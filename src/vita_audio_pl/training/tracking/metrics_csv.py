"""`metrics.csv`: one row per logged step, columns that never change their names, and no row twice after a resume."""

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vita_audio_pl.storage.files import keep_damaged
from vita_audio_pl.storage.metrics import STEP, read_metrics
from vita_audio_pl.training.run_folder.layout import METRICS


class MetricsCsv(Logger):
    """Writes `folder/metrics.csv`; training and validation figures of a step share its row.

    Lightning's own CSV logger deletes the file of a run that goes on; this one keeps it and cuts the rows after the
    step that the run resumes from, because they will be written again.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / METRICS
        self._rows, damaged = read_metrics(self.path)
        if damaged and getattr(rank_zero_only, "rank", 0) == 0:
            kept = keep_damaged(self.path)
            print(
                f"{damaged} lines of {self.path} are cut or damaged and left out; all of it is kept as {kept}",
                flush=True,
            )

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings are in `config.yaml` beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self._rows.setdefault(int(step or 0), {})
        row.update({name: f"{value:.8g}" for name, value in metrics.items()})
        self.save()

    @rank_zero_only
    def cut_after(self, step: int) -> None:
        """Forget the rows after `step`."""
        self._rows = {at: row for at, row in self._rows.items() if at <= step}
        self.save()

    @rank_zero_only
    def save(self) -> None:
        columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        aside = self.path.with_suffix(".csv.tmp")
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, [STEP, *sorted(columns, key=_column_order)])
            writer.writeheader()
            writer.writerows({STEP: str(step), **self._rows[step]} for step in sorted(self._rows))
        os.replace(aside, self.path)


def _column_order(name: str) -> tuple[int, str, int]:
    """Training first, then validation, then the rest; heads by number."""
    stem, _, number = name.rpartition("_")
    numbered = (stem, int(number)) if number.isdigit() else (name, -1)
    return ({"train": 0, "val": 1}.get(name.split("/")[0], 2), *numbered)
