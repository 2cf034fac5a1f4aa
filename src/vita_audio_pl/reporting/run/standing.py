"""A run beside the published tables, row by row, over all benches: what it reaches, and what keeps the two apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.reporting.results.files import Result, read_json, read_result
from vita_audio_pl.reporting.results.shown import choose_results
from vita_audio_pl.reporting.tables import METRIC_NAMES, NOT_MEASURED, Cell, Table, rate_cell

STAGES = {"1": "align", "2": "mtp1", "3": "mtp10", "4": "sft"}
"""The paper's stage numbers."""

ELSEWHERE = (
    "MMLU (74.22 before training, 66.92 after) and GSM8K (80.06, 80.14) are not measured here: export the model and run "
    "a harness for text models on it.",
    "Speed and time to the first chunk are measured by python -m vita_audio_pl.benchmark what=decoding "
    "decoding=published, on random weights of the published sizes.",
)


@dataclass(frozen=True)
class PublishedFigure:
    """One figure of the published tables, in percent.

    Attributes:
        mode, stage: of the published system, as ours are called; None where another system is meant. Without a stage
            in its name a system is the one at the end of the chain.
        plus: it takes audio through a continuous encoder.
        reasons: what may keep any figure of the bench apart from it.
    """

    bench: str
    task: str
    split: str
    metric: str
    system: str
    value: float
    mode: str | None
    stage: str | None
    plus: bool
    reasons: tuple[str, ...]


def published_figures(folder: Path | None = None) -> list[PublishedFigure]:
    """All published figures that the bench files name."""
    found = []
    for path in sorted((folder or asset_dir("conf") / "bench").glob("*.yaml")):
        bench = yaml.safe_load(path.read_text(encoding="utf-8"))
        for figure in bench.get("published", []):
            system = figure["system"].removeprefix("VITA-Audio-")
            name, _, number = system.removeprefix("Plus-").partition(" stage ")
            ours = figure["system"] != system
            found.append(
                PublishedFigure(
                    bench["name"],
                    figure["task"],
                    figure.get("split", "test"),
                    figure["metric"],
                    figure["system"],
                    float(figure["value"]),
                    name.lower() if ours else None,
                    STAGES.get(number),
                    system.startswith("Plus-"),
                    tuple(bench.get("incomparable", ())),
                )
            )
    return found


def measured(run: Path) -> list[Result]:
    """A run's results on every bench and under both profiles, of several of one kind the one that pages show."""
    manifests = {path.parents[1].name: read_json(path, {}) for path in run.glob("*/model/manifest.json")}
    weights = {stage: manifest["weights"] for stage, manifest in manifests.items() if manifest.get("weights")}
    return choose_results(map(read_result, sorted(run.glob("eval/*/*/*/*/result*.json"))), weights)[0]


def standing_table(results: Sequence[Result], figures: Sequence[PublishedFigure], last: str, plus: bool) -> Table:
    """One row for each published figure, those that were measured first; ours beside it, and what keeps them apart.

    Args:
        results: from `measured`.
        figures: from `published_figures`.
        last: the run's last stage, which stands beside systems that name none.
        plus: the run takes audio through a continuous encoder.
    """
    measured_rows: list[tuple[Cell, ...]] = []
    other_rows: list[tuple[Cell, ...]] = []
    for figure in figures:
        found = {
            r.figures["profile"]: r
            for r in results
            if (r.figures["bench"], r.task, r.split) == (figure.bench, figure.task, figure.split)
            and (r.stage, r.mode) == (figure.stage or last, figure.mode)
        }
        place = (figure.bench, figure.split, METRIC_NAMES[figure.metric], figure.system)
        published = Cell(f"{figure.value:.2f} %", figure.value / 100)
        cells = [_cell(found.get(profile), figure.metric) for profile in ("strict", "reference")]
        rows = measured_rows if found else other_rows
        rows.append((*map(Cell, place), published, *cells, Cell("; ".join(_apart(figure, found, last, plus)))))
    headers = (
        "Bench",
        "Split",
        "Figure",
        "System",
        "Published",
        "Ours, strict",
        "Ours, reference",
        "What keeps them apart",
    )
    return Table(headers, (*measured_rows, *other_rows), labels=4)


def _cell(result: Result | None, metric: str) -> Cell:
    if result is None or metric not in result.figures["metrics"]:
        return NOT_MEASURED
    figure: dict[str, Any] = result.figures["metrics"][metric]
    return rate_cell(figure["value"], figure["low"], figure["high"])


def _apart(figure: PublishedFigure, found: dict[str, Result], last: str, plus: bool) -> Iterator[str]:
    """Why a row's figures are not to be compared, the weightiest first."""
    if figure.mode is None:
        yield "another system, for orientation"
        return
    if not found:
        stage = figure.stage or last or "sft"
        yield (
            f"not measured: evaluate model=runs/RUN/{stage} bench={figure.bench} task={figure.task} "
            f"split={figure.split} mode={figure.mode} profile=both"
        )
        return
    if figure.plus != plus:
        yield f"the published system {'takes' if figure.plus else 'does not take'} audio through a continuous encoder"
    if "reference" not in found:
        yield "only scored by profile=strict; the published protocol is profile=reference"
    facts = next(iter(found.values())).figures
    if facts.get("limited_to"):
        yield f"only the first {facts['limited_to']} utterances"
    if facts.get("constrained"):
        yield "nothing but audio may be written inside a span (constrain); the published system masks nothing"
    if (verify := facts.get("verify", "none")) != "none":
        yield "drafts were verified" + (" loosely (groups)" if verify == "groups" else "")
    if facts.get("judge") and figure.metric.startswith("speech"):
        yield f"judged by {facts['judge']}"
    yield from figure.reasons
