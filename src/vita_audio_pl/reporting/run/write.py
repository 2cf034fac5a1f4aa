"""Writes the report of a run: the page, its tables as Markdown, its figures as PNG, its sounds as wav."""

import base64
from dataclasses import dataclass
from pathlib import Path

from vita_audio_pl.config.screen import markdown_text
from vita_audio_pl.reporting.run.listening import Utterance, listening_examples
from vita_audio_pl.reporting.run.page import last_stage, render, run_page, run_pictures
from vita_audio_pl.reporting.run.standing import ELSEWHERE, measured, published_figures, standing_table
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.reporting.tables import (
    comparison_table,
    controls_table,
    headline,
    judges_table,
    main_table,
    markdown,
)
from vita_audio_pl.storage.files import atomic_write
from vita_audio_pl.storage.names import safe_name
from vita_audio_pl.storage.owned import Kind, Owned

REPORT = Kind("report", sign=("tables.md", "report.md"))


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: the HTML page.
        figures: PNG files.
        sounds: wav files, grouped by utterance in their names.
        standing: the run beside the published tables; None for several runs.
    """

    page: Path
    figures: tuple[Path, ...]
    sounds: tuple[Path, ...]
    standing: Path | None = None


def write_report(run: RunFiles, output: Path, title: str, split: str = "test") -> Report:
    """Write `index.html`, `published.html`, their tables as Markdown, `*.png` and `audio/` into `output`.

    The report that was there is replaced.

    Raises:
        UserError: `output` holds something else.
    """
    Owned.claim(output, REPORT)
    stage = last_stage(run, split)
    pictures = run_pictures(run, split)
    figures = {output / f"{name}.png": picture for name, picture in pictures.items()}
    for path, picture in figures.items():
        write_file(path, picture.light)
    sections = {"Held-out results": main_table(run, split), f"Against Vanilla, {stage}": comparison_table(run, split, stage),
                "The judge": controls_table(run), "Two judges": judges_table(run)}  # fmt: skip
    tables = "\n".join(
        f"## {heading}\n\n{markdown(table)}" + (f"\n{markdown_text(table.caption)}\n" if table.caption else "")
        for heading, table in sections.items()
        if table.rows
    )
    sentences = "".join(f"{markdown_text(sentence)}\n" for sentence in [*headline(run, stage, split), *run.notes])
    write_file(output / "tables.md", f"# {markdown_text(title)}\n\n{sentences}\n{tables}".encode())
    sounds = [
        path
        for utterance in listening_examples(run, stage, split)
        for path in write_sounds(utterance, output / "audio")
    ]
    page = output / "index.html"
    write_file(page, run_page(run, title, pictures, split).encode())
    standing = _write_standing(run, stage, output)
    return Report(page, tuple(figures), tuple(sounds), standing)


def _write_standing(run: RunFiles, last: str, output: Path) -> Path:
    """The run beside the published tables, as `published.html` and `published.md`."""
    plus = any(str(stage.manifest.get("variant", "")).startswith("vita_audio_plus") for stage in run.stages)
    table = standing_table(measured(run.folder), published_figures(), last, plus)
    title = f"{run.folder.name} beside the published tables"
    page = output / "published.html"
    write_file(page, render("standing.html.j2", title=title, table=table, elsewhere=ELSEWHERE).encode())
    notes = "".join(f"- {sentence}\n" for sentence in ELSEWHERE)
    write_file(output / "published.md", f"# {markdown_text(title)}\n\n{markdown(table)}\n{notes}".encode())
    return page


def write_sounds(utterance: Utterance, folder: Path) -> list[Path]:
    """The sounds of an utterance as files named after who speaks."""
    written = []
    for voice in utterance.voices:
        if voice.sound.uri:
            kind, _, content = voice.sound.uri.partition(";base64,")
            speaker = "".join(char if char.isalnum() or char in "._-" else "_" for char in voice.name.replace(",", ""))
            path = folder / f"{safe_name(utterance.id)}.{speaker}.{kind.rpartition('/')[2]}"
            write_file(path, base64.b64decode(content))
            written.append(path)
    return written


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content, flush=False)
