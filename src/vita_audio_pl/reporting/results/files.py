"""Reads results of evaluations: figures, utterances, where they are."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vita_audio_pl.config.decoding import label_of
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.identity import RESULT_FORMATS
from vita_audio_pl.evaluation.records import Measured
from vita_audio_pl.evaluation.sealed import read_figures, read_rows, read_utterances

_FIELDS = ("bench", "stage", "split", "task", "mode", "profile", "utterances", "metrics")


@dataclass(frozen=True)
class Result:
    """One evaluation: its `result.json` and the folder that it is in."""

    folder: Path
    figures: dict[str, Any]
    utterance_file: str = "utterances.jsonl"

    @property
    def key(self) -> str:
        """The name of what decided it; empty where an older version did not record that."""
        return str(self.figures.get("key", "")) if self.figures.get("format") in RESULT_FORMATS else ""

    @property
    def weights(self) -> str:
        """Hash of the model's weights by its manifest; empty where it is not known."""
        return str(self.figures.get("weights", ""))

    @property
    def place(self) -> tuple[str, ...]:
        """What a page calls it: bench, stage, split, task, mode, profile."""
        return (
            str(self.figures["bench"]), self.stage, self.split, self.task, self.mode, str(self.figures.get("profile")),
        )  # fmt: skip

    @cached_property
    def created(self) -> str:
        """When its evaluation began, as ISO 8601; empty where it is not known."""
        return str(read_json(self.folder / "key.json", {}).get("created", ""))

    @property
    def stage(self) -> str:
        return str(self.figures["stage"])

    @property
    def task(self) -> str:
        return str(self.figures["task"])

    @property
    def split(self) -> str:
        return str(self.figures["split"])

    @property
    def mode(self) -> str:
        """Decoding mode as shown: `boost`, `boost+verify` where drafts were checked, `boost+sampled` where it drew tokens."""
        return label_of(self.figures)

    @cached_property
    def utterances(self) -> list[dict[str, Any]]:
        """A row for each utterance, worst first."""
        return read_utterances(self.folder / self.utterance_file, self.figures)

    @cached_property
    def compute_seconds(self) -> dict[str, tuple[float, Measured]]:
        """Measured seconds of generating each answer, and how they were taken, by id; of answers where they were."""
        rows = [row for path in sorted(self.folder.glob("answers.*.jsonl")) for row in read_rows(path, torn=True)]
        return {
            row["id"]: (row["compute_seconds"], Measured(row.get("together", 0), row.get("machine", "")))
            for row in rows
            if row.get("compute_seconds") is not None
        }

    @property
    def bench_folder(self) -> Path:
        """Where results of its bench are: rows name questions and expected answers from there, `audio` from `folder`."""
        return self.folder.resolve().parents[2]


def read_result(path: Path) -> Result:
    """The evaluation of a `result.json`, or of `result.reference.json` under the published protocol.

    Raises:
        UserError: the file is damaged.
    """
    figures = read_figures(path)
    if missing := [name for name in _FIELDS if name not in figures]:
        raise UserError(f"{path} is not a result: it has no {missing[0]}; move it away and evaluate again")
    return Result(path.parent, figures, f"utterances{path.stem.removeprefix('result')}.jsonl")


def read_json(path: Path, otherwise: Any) -> Any:
    """What a JSON file holds, or `otherwise` where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return otherwise
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); move it away and evaluate again") from None
