"""`metrics.csv`: one row per logged step, stable column names, and no duplicate rows after a resume."""

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
    """Writes `folder/metrics.csv`; training and validation metrics of a step share its row.

    Lightning's own CSV logger deletes the file of a resumed run; this one keeps it but removes the rows after the
    step that the run resumes from, because they will be written again.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / METRICS
        self._rows, damaged = read_metrics(self.path)
        self._columns: list[str] = []  # the columns in the file; none until this run has written it
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
        at, new = int(step or 0), {name: f"{value:.8g}" for name, value in metrics.items()}
        append = at > max(self._rows, default=at) and new.keys() <= set(self._columns) and self.path.is_file()
        self._rows.setdefault(at, {}).update(new)
        if append:  # append whole lines: a long file is not rewritten for each step
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, [STEP, *self._columns]).writerow({STEP: str(at), **new})
        else:
            self.save()

    @rank_zero_only
    def cut_after(self, step: int) -> None:
        """Drop the rows after `step`."""
        self._rows = {at: row for at, row in self._rows.items() if at <= step}
        self.save()

    @rank_zero_only
    def save(self) -> None:
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        self._columns = sorted(names, key=_column_order)
        aside = self.path.with_suffix(".csv.tmp")
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, [STEP, *self._columns])
            writer.writeheader()
            writer.writerows({STEP: str(step), **self._rows[step]} for step in sorted(self._rows))
        os.replace(aside, self.path)


def _column_order(name: str) -> tuple[int, str, int]:
    """Training first, then validation, then the rest; heads by number."""
    stem, _, number = name.rpartition("_")
    numbered = (stem, int(number)) if number.isdigit() else (name, -1)
    return ({"train": 0, "val": 1}.get(name.split("/")[0], 2), *numbered)
