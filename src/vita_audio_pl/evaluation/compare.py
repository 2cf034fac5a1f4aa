"""Two results side by side: the same utterances, the difference, and whether it could be chance."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.scoring import METRICS, per_utterance
from vita_audio_pl.evaluation.significance import compare_paired


def compare_results(first: Path, second: Path) -> dict[str, Any]:
    """Second minus first for every metric that both have, over the utterances that both have.

    Args:
        first, second: folders with `result.json` and `utterances.jsonl`.

    Raises:
        UserError: a folder has no results, they are of different tasks, or they share no utterance.
    """
    (one, one_rows), (two, two_rows) = _load(first), _load(second)
    for key in ("bench", "task", "profile"):
        if one[key] != two[key]:
            raise UserError(f"{first} and {second} cannot be compared: {key} is '{one[key]}' and '{two[key]}'")
    return compare_rows(one["task"], one_rows, two_rows) | {
        "first": {key: one[key] for key in _NAMES},
        "second": {key: two[key] for key in _NAMES},
    }


def compare_rows(task: str, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[str, Any]:
    """Paired differences of all metrics of a task, and the share of backbone passes, over common utterances."""
    metrics: dict[str, Any] = {}
    for metric in METRICS[task]:
        one, two = per_utterance(first, metric.name), per_utterance(second, metric.name)
        common = [id for id in one if id in two]
        if not common:
            continue
        difference = compare_paired(
            [one[id][0] for id in common], [two[id][0] for id in common], [one[id][1] for id in common]
        )
        metrics[metric.name] = {name: round(value, 5) for name, value in asdict(difference).items()}
        metrics[metric.name]["utterances"] = len(common)
    passes_one, passes_two = ({row["id"]: row["backbone_passes"] for row in rows} for rows in (first, second))
    common = [id for id in passes_one if id in passes_two]
    if not common:
        raise UserError("the two results have no utterance in common, so there is nothing to compare")
    share = sum(passes_two[id] for id in common) / max(1, sum(passes_one[id] for id in common))
    return {"utterances": len(common), "metrics": metrics, "backbone_passes_share": round(share, 5)}


_NAMES = ("stage", "mode", "verify", "split", "model")


def _load(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        rows = (folder / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no results ({error.filename} is missing); evaluate first") from None
    return result, [json.loads(row) for row in rows]
