"""One page for an ablation: question, results over seeds, trade-off, curves, sounds side by side, cost."""

import dataclasses
from pathlib import Path

from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.experiment_figures import PARETO, experiment_pictures
from vita_audio_pl.reporting.experiment_files import ArmRun, ExperimentFiles
from vita_audio_pl.reporting.experiment_tables import (
    SPOKEN,
    cost_table,
    difference,
    differences_by_seed,
    estimate,
    metric,
    results_over_seeds,
    sharing_sentences,
    speed_up,
)
from vita_audio_pl.reporting.listening import Utterance, Voice, utterances_to_hear
from vita_audio_pl.reporting.page import render
from vita_audio_pl.reporting.seeds import Estimate
from vita_audio_pl.reporting.tables import Cell, Table, markdown
from vita_audio_pl.reporting.write import Report, write_file, write_sounds

PROMPTS = 3


def write_experiment_report(files: ExperimentFiles, output: Path, split: str = "test", title: str = "") -> Report:
    """Write `index.html`, `report.md` and `*.png` of an ablation into `output`; what was there is replaced."""
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
        seeds=sorted({arm.seed for arm in files.arms}),
        facts=_facts(files),
        headline=headline(files, split),
        results=results_over_seeds(files, split),
        asked=_asked(files, split),
        pareto=pictures.get(PARETO),
        differences=differences_by_seed(files, split),
        curves=[(name.removeprefix("curves_"), picture) for name, picture in pictures.items() if name != PARETO],
        cost=cost_table(files),
        sharing=sharing_sentences(files),
        utterances=utterances,
        heard_seed=files.arms[0].seed,
        settings=_settings(files),
    )
    write_file(output / "index.html", page.encode())
    write_file(output / "report.md", _markdown(files, split, title, [path.name for path in paths]).encode())
    sounds = [path for utterance in utterances for path in write_sounds(utterance, output / "audio")]
    return Report(output / "index.html", tuple(paths), tuple(sounds))


def headline(files: ExperimentFiles, split: str) -> list[str]:
    """Each arm's speaking error rate and speed in a sentence."""
    sentences = []
    reference = files.choices[0]
    modes = [mode for mode in files.modes(split) if mode != "vanilla" and "+" not in mode]
    for mode in modes if len(files.choices) == 1 else modes[:1]:
        for choice in files.choices:
            wer = estimate(files, choice, metric(mode, "tts", "speech_wer", split))
            speed = estimate(files, choice, speed_up(mode, split))
            if wer is None or speed is None:
                continue
            sentence = f"{choice}, mode {mode}: TTS WER {_percent(wer)} at {speed.mean:.2f} times Vanilla's speed"
            checked = estimate(files, choice, speed_up(f"{mode}+verify", split))
            if checked is not None:
                sentence += f", {checked.mean:.2f} times with every token verified"
            apart = difference(files, choice, reference, metric(mode, "tts", "speech_wer", split))
            if choice != reference and apart is not None:
                within = "from one seed" if apart.low is None else "within chance"
                beyond = "beyond chance" if apart.excludes_zero else within
                sentence += f"; {100 * apart.mean:+.1f} points against {reference}, {beyond}"
            sentences.append(sentence + ".")
    return sentences


def side_by_side(files: ExperimentFiles, split: str) -> list[Utterance]:
    """The first prompts, answered by every arm of the first arm's seed: all modes of the first, one of the others."""
    seed = files.arms[0].seed
    arms = [arm for arm in files.arms if arm.seed == seed]
    found: dict[str, Utterance] = {}
    for number, arm in enumerate(arms):
        for utterance in utterances_to_hear(arm.run, arm.last.name, split, PROMPTS):
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


def _facts(files: ExperimentFiles) -> list[str]:
    """What all arms have in common."""
    arm = files.arms[0]
    steps = ", ".join(f"{stage.name} {stage.manifest['steps']} steps" for stage in arm.run.stages if stage.manifest)
    return [steps] if steps else []


def _asked(files: ExperimentFiles, split: str) -> str:
    counts = {len(arm.rows("vanilla", task, split)) for arm in files.arms for task in SPOKEN} - {0}
    return (
        f"Utterances of each task, arm and seed, the same in all modes: {min(counts)} to {max(counts)}."
        if counts
        else ""
    )


def _settings(files: ExperimentFiles) -> Table:
    rows = []
    for arm in files.arms:
        settings = ", ".join(f"{key}={value}" for key, value in arm.facts["settings"].items())
        rows.append((Cell(arm.run.folder.name), Cell(settings or "as configured"), Cell(str(arm.seed))))
    return Table(("Run", "Settings", "Seed"), tuple(rows), labels=3)


def _markdown(files: ExperimentFiles, split: str, title: str, figures: list[str]) -> str:
    sections = {
        "Held-out results": results_over_seeds(files, split),
        f"Against {files.choices[0]}, seed by seed, in percentage points": differences_by_seed(files, split),
        "Cost": cost_table(files),
    }
    parts = [f"# {title}", files.question, *headline(files, split)]
    if files.unfinished:
        parts.append(f"Not finished, and left out: {', '.join(files.unfinished)}.")
    for heading, table in sections.items():
        if table.rows:
            parts += [f"## {heading}", markdown(table).rstrip()]
    parts += [*sharing_sentences(files), *(f"![{name}]({name})" for name in figures)]
    return "\n\n".join(parts) + "\n"


def _percent(found: Estimate) -> str:
    spread = "" if found.low is None or found.high is None else f" ({100 * found.low:.1f} to {100 * found.high:.1f})"
    return f"{100 * found.mean:.1f} %{spread}"


def experiment_folder(runs: Path, name: str) -> Path:
    """Folder of an ablation.

    Raises:
        UserError: there is none of that name; the sentence lists those that are there.
    """
    folder = runs / name
    if not folder.is_dir():
        there = sorted({path.parents[1].name for path in runs.glob("*/*/arm.json")})
        raise UserError(
            f"there is no ablation '{name}' in {runs}; {'there are ' + ', '.join(there) if there else 'none was run yet'}"
        )
    return folder
