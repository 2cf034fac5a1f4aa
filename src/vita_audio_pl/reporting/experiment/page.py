"""One page for an ablation: question, results over seeds, trade-off, curves, sounds side by side, cost."""

import dataclasses
from pathlib import Path

from vita_audio_pl.config.screen import markdown_text
from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.experiment.cost import cost_sentences, cost_table
from vita_audio_pl.reporting.experiment.figures import CURVES, PARETO, experiment_pictures
from vita_audio_pl.reporting.experiment.files import ArmRun, ExperimentFiles
from vita_audio_pl.reporting.experiment.measures import SPOKEN
from vita_audio_pl.reporting.experiment.summary import cautions, common_steps, headline, lead_in_sentence
from vita_audio_pl.reporting.experiment.tables import differences_by_seed, heads_table, results_over_seeds
from vita_audio_pl.reporting.run.listening import Utterance, Voice, listening_examples
from vita_audio_pl.reporting.run.page import render
from vita_audio_pl.reporting.run.write import REPORT, Report, write_file, write_sounds
from vita_audio_pl.reporting.tables import Cell, Table, markdown
from vita_audio_pl.storage.owned import Owned, below

PROMPTS = 3
HEADS_NOTE = (
    "Each head over the held-out tokens that it writes in the arm's pattern: the same tokens for all objectives, not for "
    "arms whose patterns or numbers of heads differ."
)


def write_experiment_report(files: ExperimentFiles, output: Path, split: str = "test", title: str = "") -> Report:
    """Write `index.html`, `report.md` and `*.png` of an ablation into `output`; the report that was there is replaced.

    Raises:
        UserError: `output` holds something else.
    """
    Owned.claim(output, REPORT)
    pictures = experiment_pictures(files, split)
    paths = {output / f"{name}.png": picture for name, picture in pictures.items()}
    for path, picture in paths.items():
        write_file(path, picture.light)
    title = title or f"Ablation: {files.name}"
    utterances = side_by_side(files, split)
    page = render(
        "experiment.html.j2",
        title=title,
        files=files,
        steps=common_steps(files),
        cautions=cautions(files),
        headline=headline(files, split),
        results=results_over_seeds(files, split),
        asked=_asked(files, split),
        lead_in=lead_in_sentence(files),
        pareto=pictures.get(PARETO),
        differences=differences_by_seed(files, split),
        curves=[(name.removeprefix(CURVES), picture) for name, picture in pictures.items() if name != PARETO],
        heads=heads_table(files),
        heads_note=HEADS_NOTE,
        cost=cost_table(files),
        cost_sentences=cost_sentences(files),
        utterances=utterances,
        settings=_settings(files),
    )
    write_file(output / "index.html", page.encode())
    write_file(output / "report.md", _markdown(files, split, title, [path.name for path in paths]).encode())
    sounds = [path for utterance in utterances for path in write_sounds(utterance, output / "audio")]
    return Report(output / "index.html", tuple(paths), tuple(sounds))


def side_by_side(files: ExperimentFiles, split: str) -> list[Utterance]:
    """The first prompts, answered by every arm of the seed that most arms have: all modes of the first, one of the others."""
    arms = [arm for arm in files.arms if arm.seed == files.sample_seed]
    found: dict[str, Utterance] = {}
    for number, arm in enumerate(arms):
        for utterance in listening_examples(arm.run, arm.last.name, split, PROMPTS):
            modes = {result.mode for result in arm.run.results}
            voices = tuple(
                _named(voice, arm, voice.name in modes) for voice in utterance.voices if _wanted(voice, number, modes)
            )
            if utterance.id in found:
                voices = (*found[utterance.id].voices, *voices)
            elif number:
                continue
            found[utterance.id] = dataclasses.replace(utterance, voices=voices)
    return list(found.values())


def _wanted(voice: Voice, number: int, modes: set[str]) -> bool:
    if voice.name not in modes:  # question, expected answer: once
        return number == 0
    return "+" not in voice.name and (number == 0 or voice.name != "vanilla")


def _named(voice: Voice, arm: ArmRun, is_answer: bool) -> Voice:
    return dataclasses.replace(voice, name=f"{arm.choice}, {voice.name}") if is_answer else voice


def _asked(files: ExperimentFiles, split: str) -> str:
    counts = {len(arm.rows("vanilla", task, split)) for arm in files.arms for task in SPOKEN} - {0}
    if not counts:
        return ""
    shown = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    return f"Utterances of each task, arm and seed, the same in all modes: {shown}."


def _settings(files: ExperimentFiles) -> Table:
    rows = []
    for arm in files.arms:
        settings = ", ".join(f"{key}={value}" for key, value in arm.facts["settings"].items())
        rows.append((Cell(arm.run.folder.name), Cell(settings or "as configured"), Cell(str(arm.seed))))
    return Table(("Run", "Settings", "Seed"), tuple(rows), labels=3)


def _markdown(files: ExperimentFiles, split: str, title: str, figures: list[str]) -> str:
    sections: tuple[tuple[str, Table, list[str]], ...] = (
        ("Held-out results", results_over_seeds(files, split), [_asked(files, split), lead_in_sentence(files)]),
        (f"Against {files.choices[0]}, over common seeds (rates in percentage points)", differences_by_seed(files, split), []),
        ("Held-out accuracy of the heads", heads_table(files), [HEADS_NOTE]),
        ("Cost", cost_table(files), cost_sentences(files)),
    )  # fmt: skip
    parts = [f"# {markdown_text(title)}", markdown_text(files.question), *cautions(files), *headline(files, split)]
    for heading, table, sentences in sections:
        if table.rows:
            parts += [f"## {heading}", markdown(table).rstrip(), table.caption, *sentences]
    parts += [f"![{name}]({name})" for name in figures]
    return "\n\n".join(part for part in parts if part) + "\n"


def experiment_folder(runs: Path, name: str) -> Path:
    """Folder of an ablation.

    Raises:
        UserError: there is none of that name; the sentence lists those that are there.
    """
    folder = below(runs, name, "experiment")
    if not folder.is_dir():
        there = sorted({path.parents[1].name for path in runs.glob("*/*/arm.json")})
        raise UserError(
            f"there is no ablation '{name}' in {runs}; {'there are ' + ', '.join(there) if there else 'none was run yet'}"
        )
    return folder
