"""A run beside published figures, row by row, and what keeps the two from being compared."""

from collections.abc import Sequence
from typing import Any

from vita_audio_pl.reporting.results.files import Result
from vita_audio_pl.reporting.tables import METRIC_NAMES, NOT_MEASURED, Cell, Table, rate_cell


def published_table(results: Sequence[Result]) -> Table:
    """One row for each published figure of the benches that were evaluated; ours beside it, one column per mode.

    Benches without published figures give no rows. Figures are in percent.
    """
    modes = list(dict.fromkeys(result.mode for result in results if result.figures.get("published")))
    by_place: dict[tuple[str, ...], dict[str, Result]] = {}
    for result in results:
        place = (str(result.figures["bench"]), result.split, result.task)
        by_place.setdefault(place, {})[result.mode] = result  # the last stage's, results come in stage order
    rows = []
    for (bench, split, _), ours in by_place.items():
        for figure in next(iter(ours.values())).figures.get("published", []):
            cells = [Cell(bench), Cell(split), Cell(METRIC_NAMES[figure["metric"]]), Cell(figure["system"])]
            cells.append(Cell(f"{figure['value']:.2f} %", figure["value"] / 100))
            cells += [_ours(ours.get(mode), figure["metric"]) for mode in modes]
            rows.append(tuple(cells))
    return Table(("Bench", "Split", "Figure", "System", "Published", *modes), tuple(rows), labels=4)


def reasons_against_comparing(results: Sequence[Result]) -> list[str]:
    """Why figures of these results may not stand beside published ones: one sentence each, none twice."""
    reasons: list[str] = []
    for result in results:
        figures = result.figures
        if not figures.get("published"):
            continue
        place = f"{figures['bench']} {result.split}"
        if figures["profile"] == "strict":
            reasons.append(
                "profile strict counts silent and missing answers as wrong and cuts no transcripts; profile=reference "
                "scores as the published protocol does"
            )
        if figures.get("limited_to"):
            reasons.append(f"{place}: only the first {figures['limited_to']} utterances were evaluated")
        if figures["judge"]:
            reasons.append(f"{place}: speech was judged by {figures['judge']}")
        reasons += [f"{place}: {reason}" for reason in figures.get("incomparable", [])]
    return list(dict.fromkeys(reasons))


def _ours(result: Result | None, metric: str) -> Cell:
    if result is None or metric not in result.figures["metrics"]:
        return NOT_MEASURED
    figure: dict[str, Any] = result.figures["metrics"][metric]
    return rate_cell(figure["value"], figure["low"], figure["high"])
