"""Comparison of two results: the same utterances, the difference, and its significance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vita_audio_pl.config.decoding import label_of
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.identity import FORMAT, RESULT_FORMATS
from vita_audio_pl.evaluation.records import Answer, Measured, RecordFile
from vita_audio_pl.evaluation.scores.measures import count_errors
from vita_audio_pl.evaluation.scores.scoring import METRICS, passes_by_id, per_utterance
from vita_audio_pl.evaluation.scores.significance import compare_paired
from vita_audio_pl.evaluation.sealed import read_figures, read_utterances
from vita_audio_pl.storage.files import write_json

COMPARISONS = "comparisons.json"
_MUST_AGREE = ("task", "profile", "scoring", "listening")
"""Without these, a difference would be one of rules or of judges and not of models."""
_STATED = (
    "model_digest",
    "pattern",
    "verify",
    "constrained",
    "max_new_tokens",
    "precision",
    "unreadable",
    "sampling",
    "slack",
    "kernels",
    "quantize",
)
"""What may differ, and is said to: it is what a comparison is made for."""
_NAMES = ("stage", "mode", "verify", "split", "model", "key", "utterances")
_SOMETIMES = ("sampling", "quantize")


class _Loaded:
    """A result with its utterances, which are read when they are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.figures = read_figures(folder / "result.json")
        self._rows: list[dict[str, Any]] | None = None

    @property
    def current(self) -> bool:
        return self.figures.get("format") in RESULT_FORMATS

    @property
    def label(self) -> str:
        return label_of(self.figures)

    @property
    def is_vanilla(self) -> bool:
        return (self.figures["mode"], self.figures["verify"]) == ("vanilla", "none")

    @property
    def rows(self) -> list[dict[str, Any]]:
        if self._rows is None:
            self._rows = read_utterances(self.folder / "utterances.jsonl", self.figures)
        return self._rows

    @property
    def answers(self) -> dict[str, Answer]:
        """The records of the answers that it scores."""
        records = RecordFile(self.folder, "answers")
        return {row["id"]: Answer.of(records[row["id"]]) for row in self.rows if row["id"] in records}

    @property
    def contents(self) -> dict[str, str]:
        return {row["id"]: row["content"] for row in self.rows}


def compare_results(first: Path, second: Path) -> dict[str, Any]:
    """Second minus first for every metric that both have, over the utterances that both have.

    Args:
        first, second: folders with `result.json` and `utterances.jsonl`.

    Raises:
        UserError: a folder has no results, or results that an older version wrote without what decides them; task,
            rules or judge differ; they share no utterance, or one of the same id is another.
    """
    one, two = _Loaded(first), _Loaded(second)
    for loaded in (one, two):
        if not loaded.current:
            raise UserError(
                f"{loaded.folder} cannot be compared: an older version wrote it and did not record which files decided "
                "it; evaluate again"
            )
    for name in _MUST_AGREE:
        if one.figures[name] != two.figures[name]:
            raise UserError(
                f"{first} and {second} cannot be compared: {name} is {_short(one.figures[name])} and "
                f"{_short(two.figures[name])}; evaluate both alike"
            )
    others = [id for id, content in one.contents.items() if two.contents.get(id, content) != content]
    if others:
        raise UserError(
            f"{first} and {second} cannot be compared: {len(others)} utterances of one id have other recordings, words "
            f"or references, the first is '{others[0]}'; evaluate both on one bench"
        )
    return _comparison(one, two)


def compare_modes(bench: Path) -> list[dict[str, Any]]:
    """Every mode against Vanilla with the same model, for each stage, split and task below a bench's folder.

    Of several results of Vanilla the one with the most common utterances is the baseline. Damaged results are left out.
    Writes `comparisons.json`.
    """
    folders = [path.parent for path in sorted(bench.glob("*/*/*/result.json"))]
    loaded = [result for folder in folders if (result := _undamaged(folder)) is not None and result.current]
    comparisons = []
    for result in loaded:
        baselines = [other for other in loaded if other.is_vanilla and _paired(other, result)]
        if result.is_vanilla or not baselines:
            continue
        baseline = max(baselines, key=lambda other: (_common(other, result), other.figures["key"]))
        comparisons.append({name: result.figures[name] for name in ("stage", "split", "task")}
                           | {"mode": result.label} | _comparison(baseline, result))  # fmt: skip
    write_json(bench / COMPARISONS, {"format": FORMAT, "comparisons": comparisons})
    return comparisons


def _undamaged(folder: Path) -> _Loaded | None:
    try:
        loaded = _Loaded(folder)
        _ = loaded.rows  # read now, so that damage shows
    except UserError:
        return None
    return loaded


def _paired(baseline: _Loaded, result: _Loaded) -> bool:
    """Whether two results differ in nothing but the decoding pattern, its verification and the number of utterances."""
    alike = (*_MUST_AGREE, "stage", "split", "model_digest", "constrained", "max_new_tokens", "precision", "unreadable")
    if any(baseline.figures[name] != result.figures[name] for name in alike):
        return False
    # absent where the most likely token is taken, and where weights are exact
    if any(baseline.figures.get(name) != result.figures.get(name) for name in ("sampling", "quantize")):
        return False
    contents = baseline.contents
    return _common(baseline, result) > 0 and all(
        contents.get(id, content) == content for id, content in result.contents.items()
    )


def _common(one: _Loaded, two: _Loaded) -> int:
    return len(one.contents.keys() & two.contents.keys())


def _comparison(one: _Loaded, two: _Loaded) -> dict[str, Any]:
    """Of two results that may be compared."""
    differs = [name for name in _STATED if one.figures.get(name) != two.figures.get(name)]
    return (
        compare_rows(one.figures["task"], one.rows, two.rows)
        | compare_answers(one.answers, two.answers)
        | {
            "first": _side(one.figures),
            "second": _side(two.figures),
            "differs": differs,
        }
    )


def _side(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in _NAMES} | {name: figures[name] for name in _SOMETIMES if name in figures}


def compare_rows(task: str, first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Paired differences of all metrics of a task, and the share of backbone passes, over common utterances.

    A metric has both rates over the common utterances, `first` and `second`, beside their difference `value`.
    """
    metrics: dict[str, Any] = {}
    for metric in METRICS[task]:
        one, two = per_utterance(first, metric.name), per_utterance(second, metric.name)
        common = [id for id in one if id in two]
        if not common:
            continue
        (top_one, below_one), (top_two, below_two) = (zip(*(of[id] for id in common), strict=True) for of in (one, two))
        difference = asdict(compare_paired(top_one, top_two, below_one, below_two))
        rates = {"first": sum(top_one) / sum(below_one), "second": sum(top_two) / sum(below_two)}
        metrics[metric.name] = {name: round(value, 5) for name, value in (difference | rates).items()}
        metrics[metric.name]["utterances"] = len(common)
    ids = {row["id"] for row in second}
    n_common = sum(row["id"] in ids for row in first)
    if not n_common:
        raise UserError("the two results have no utterance in common, so there is nothing to compare")
    passes_one, passes_two = passes_by_id(first), passes_by_id(second)
    common = [id for id in passes_one if id in passes_two]
    share = sum(passes_two[id] for id in common) / max(1, sum(passes_one[id] for id in common))
    return {"utterances": n_common, "metrics": metrics, "backbone_passes_share": round(share, 5)}


def compare_answers(first: Mapping[str, Answer], second: Mapping[str, Answer]) -> dict[str, Any]:
    """What became of the answers themselves, over those that both have; empty where there are none.

    `changed` is the share of answers in which anything differs, `edits` the fewest edits from the first's tokens (words of
    the text and audio codes) to the second's over the first's. `seconds` are those of an answer, where both measured them,
    `measured` how they were (`records.Measured`, each way once), and `acceptance` the share of drafts that were kept, where there
    were drafts; a pair each. `measured_alike` says whether the seconds may be compared.
    """
    pairs = [(first[id], second[id]) for id in first if id in second]
    if not pairs:
        return {}
    edits = [_edits(_tokens(one), _tokens(two)) for one, two in pairs]
    tokens = sum(len(_tokens(one)) for one, _ in pairs)
    found: dict[str, Any] = {"changed": round(sum(map(bool, edits)) / len(pairs), 5)}
    found["edits"] = round(sum(edits) / max(1, tokens), 5)
    timed = [(one, two) for one, two in pairs if None not in (one.compute_seconds, two.compute_seconds)]
    if timed:
        sides = list(zip(*timed, strict=True))
        found["seconds"] = [round(sum(a.compute_seconds or 0.0 for a in side) / len(timed), 5) for side in sides]
        found["measured"] = [[list(way) for way in sorted({a.measured for a in side})] for side in sides]
        found["measured_alike"] = all(one.measured == two.measured != Measured() for one, two in timed)
    sides = [(sum(a.accepted for a in side), sum(a.drafted for a in side)) for side in zip(*pairs, strict=True)]
    if all(drafted for _, drafted in sides):
        found["acceptance"] = [round(accepted / drafted, 5) for accepted, drafted in sides]
    return {"answers": found}


def _tokens(answer: Answer) -> list[str]:
    return [*answer.text.split(), *map(str, answer.codes)]


def _edits(one: list[str], two: list[str]) -> int:
    return count_errors(one, two).errors if one else len(two)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 200 else f"{text[:200]}..."
