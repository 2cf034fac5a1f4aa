"""Which of several results of one place a page shows, and what it says of the others."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vita_audio_pl.reporting.results.files import Result

_NAMED = 6  # results in a sentence


def choose_results(results: Iterable[Result], weights: Mapping[str, str]) -> tuple[list[Result], list[str]]:
    """One result for each bench, stage, split, task, mode and profile, and sentences about what is not shown.

    Results of the weights that a stage has now come before all others; then the most utterances, then the latest.

    Args:
        weights: hash of the weights that each stage has now, where it is known.
    """
    places: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        places[result.place].append(result)
    shown: list[Result] = []
    told: dict[str, list[str]] = defaultdict(list)
    for found in places.values():
        now = [r for r in found if not r.weights or weights.get(r.stage, r.weights) == r.weights]
        best = max(now, key=_rank, default=None)
        shown += [] if best is None else [best]
        for result in found:
            if result is not best:
                told[_why_not(result, best, now)].append(_named(result))
    unknown = [_named(result) for result in shown if not result.key]
    told["Written by an older version, which did not record what decided them, and therefore not compared"] = unknown
    return shown, [*_sentences(told), *_protocols(shown)]


def choose_controls(found: Sequence[dict[str, Any]], results: Sequence[Result]) -> dict[str, Any]:
    """The measurement of the judge that goes with the last spoken result, of several the largest and latest."""
    listening = next((r.figures["listening"] for r in reversed(results) if r.figures.get("listening")), None)
    mine = [controls for controls in found if controls.get("listening") == listening] or list(found)

    def rank(controls: dict[str, Any]) -> tuple[int, str]:
        return max((row["utterances"] for row in controls.get("rows", [])), default=0), str(controls.get("created", ""))

    return max(mine, key=rank, default={})


def _rank(result: Result) -> tuple[bool, int, str, str]:
    return bool(result.key), int(result.figures["utterances"]), result.created, result.key


def _why_not(result: Result, best: Result | None, now: Sequence[Result]) -> str:
    if result not in now:
        return "Measured with other weights than the stage has now, and not shown"
    if best is not None and best.key and not result.key:
        return "Written by an older version, and not shown since a newer one is there"
    if best is not None and result.figures["utterances"] < best.figures["utterances"]:
        return "Measured over fewer utterances than what is shown"
    return "Measured over as many utterances with another judge, bench or setting, earlier than what is shown"


def _named(result: Result) -> str:
    return f"{result.stage} {result.split} {result.task} {result.mode} ({result.figures['utterances']} utterances)"


def _sentences(told: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{why}: {_list(names)}." for why, names in told.items() if names]


def _list(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _NAMED} more" if len(unique) > _NAMED else ""
    return ", ".join(unique[:_NAMED]) + more


def _protocols(shown: Sequence[Result]) -> list[str]:
    """A sentence where results that stand in one table were judged or scored by different rules or files."""
    by_rules: dict[str, list[Result]] = defaultdict(list)
    for result in shown:
        for name in ("listening", "scoring"):
            if result.figures.get(name):
                by_rules[f"{result.place[0]} {name} {sorted(result.figures[name].items())}"].append(result)
    apart = []
    for name in ("listening", "scoring"):
        for bench in dict.fromkeys(result.place[0] for result in shown):
            groups = [group for rules, group in by_rules.items() if rules.startswith(f"{bench} {name} ")]
            groups.sort(key=len)
            apart += [_named(result) for group in groups[:-1] for result in group]
    if not apart:
        return []
    return [f"Judged or scored by other rules or files than the other results, and not to be compared: {_list(apart)}."]
