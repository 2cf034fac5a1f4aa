"""A page for each evaluation: its figures, and its utterances to be read and heard, the worst first."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.results.files import Result, read_result
from vita_audio_pl.reporting.run_files import asset
from vita_audio_pl.reporting.tables import Cell, Table, metric_name, rate_cell
from vita_audio_pl.storage.files import atomic_write
from vita_audio_pl.storage.recordings import recording_below

MOST_SHOWN = 300  # utterances of a page; all are in utterances.jsonl


@dataclass(frozen=True)
class Player:
    """Something to hear: what it is, and its file as seen from the page, or why it is not played."""

    name: str
    file: str
    problem: str = ""


@dataclass(frozen=True)
class Shown:
    """One utterance of a page."""

    id: str
    expected: str
    written: str
    transcript: str | None
    scores: tuple[str, ...]
    players: tuple[Player, ...]
    note: str
    right: bool


def write_result_pages(bench: Path, tell: Callable[[str], object] = print) -> list[Path]:
    """Writes `result.html` beside every `result.json` of a bench's results; doing it again changes nothing.

    Folders that an older version wrote are left as they are, and so are damaged ones.

    Recordings below the bench's folder are linked, not copied, so the page belongs into its folder.

    Args:
        bench: `runs/<run>/eval/<bench>`, or any folder with results three levels below it.
        tell: gets a sentence on each damaged result.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(asset("result.html.j2"))
    pages = []
    for path in sorted(bench.glob("*/*/*/result*.json")):
        try:
            result = read_result(path)
            utterances = result.utterances if result.key else []
        except UserError as error:
            tell(f"left out: {error}")
            continue
        if not result.key:
            continue
        page = path.with_suffix(".html")
        text = template.render(
            title=f"{result.figures['bench']} {result.split}: {result.task}, {result.stage}, {result.mode}",
            figures=result.figures,
            table=figures_table(result),
            utterances=list(_shown(result)),
            total=len(utterances),
            style=Markup(asset("page.css")),
        )
        atomic_write(page, text.encode(), flush=False)
        pages.append(page)
    return pages


def figures_table(result: Result) -> Table:
    """Every figure of one evaluation with its 95 % interval, and over how many utterances."""
    rows = [
        (
            Cell(metric_name(name, result.figures)),
            rate_cell(f["value"], f["low"], f["high"]),
            Cell(str(f["utterances"]), f["utterances"]),
        )
        for name, f in result.figures["metrics"].items()
    ]
    return Table(("Figure", "Value", "Utterances"), tuple(rows))


def _shown(result: Result) -> Iterator[Shown]:
    for row in result.utterances[:MOST_SHOWN]:
        scores = tuple(_score(metric_name(name, result.figures), score) for name, score in row["scores"].items())
        notes = [row.get("failure", ""), row.get("left_out", ""), "silent" if row.get("silent") else ""]
        notes.append("" if row["stopped"] else "cut at the token limit")
        yield Shown(
            row["id"],
            " / ".join([row["reference"], *row.get("other_references", [])]),
            row["text"],
            row.get("transcript"),
            scores,
            tuple(_players(result, row)),
            ", ".join(note for note in notes if note),
            not any(is_wrong(score) for score in row["scores"].values()) and bool(scores),
        )


def is_wrong(score: dict[str, int]) -> bool:
    """Whether one score of an utterance is not perfect."""
    return score.get("errors", 0) > 0 or score.get("hits", 1) == 0


def _score(name: str, score: dict[str, int]) -> str:
    said = f"{score['errors']} errors of {score['of']}" if "errors" in score else "right" if score["hits"] else "wrong"
    return f"{name}: {said}"


def _players(result: Result, row: dict[str, Any]) -> Iterator[Player]:
    for name, key in (("asked", "source"), ("expected", "spoken_reference"), ("answer", "audio")):
        if key in row:
            try:
                file = recording_below(result.folder if key == "audio" else result.bench_folder, row[key])
                yield Player(name, quote(os.path.relpath(file, result.folder.resolve())))
            except UserError as error:
                yield Player(name, "", str(error))
