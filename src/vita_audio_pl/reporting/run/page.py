"""One self-contained HTML page of a run: figures, sounds and script are inside it, so it works from a file."""

import base64
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from vita_audio_pl.reporting.figures import Picture, loss_curves, quality_against_cost
from vita_audio_pl.reporting.results.files import Result
from vita_audio_pl.reporting.run.listening import Sound, listening_examples, sound_of
from vita_audio_pl.reporting.run.published import published_table, reasons_against_comparing
from vita_audio_pl.reporting.run.result_page import is_wrong
from vita_audio_pl.reporting.run.samples import StageSamples, read_stage_samples
from vita_audio_pl.reporting.run_files import RunFiles, Stage, asset
from vita_audio_pl.reporting.tables import comparison_table, controls_table, headline, judges_table, main_table

WORST = 8
WORST_WITH_SOUND = 3


TRADE_OFF = "wer_against_passes"


def run_pictures(run: RunFiles, split: str) -> dict[str, Picture]:
    """The figures of a run by name: `loss_<stage>`, and `wer_against_passes` where speech was evaluated."""
    pictures = {f"loss_{stage.name}": loss_curves(stage) for stage in run.stages if stage.curves}
    trade_off = quality_against_cost(run, last_stage(run, split), split)
    return pictures if trade_off is None else pictures | {TRADE_OFF: trade_off}


def run_page(run: RunFiles, title: str, pictures: dict[str, Picture], split: str = "test") -> str:
    """The page of one run.

    Args:
        run: the files of the run.
        title: heading of the page.
        pictures: from `run_pictures`.
        split: the split of the main table; results on other splits follow in tables of their own.
    """
    last = last_stage(run, split)
    other_splits = sorted({result.split for result in run.results} - {split})
    return render(
        "page.html.j2",
        title=title,
        run=run,
        split=split,
        last=last,
        facts=_facts(run),
        headline=headline(run, last, split),
        main=main_table(run, split) if run.rows(split) else None,
        others=[(name, main_table(run, name)) for name in other_splits],
        comparisons=comparison_table(run, split, last),
        controls=controls_table(run),
        judges=judges_table(run),
        trade_off=pictures.get(TRADE_OFF),
        curves=[(stage, _stage_facts(stage), pictures[f"loss_{stage.name}"]) for stage in run.stages if stage.curves],
        samples=[found for stage in run.stages if (found := _samples_of(stage)) is not None],
        utterances=listening_examples(run, last, split),
        published=published_table(run.results),
        reasons=reasons_against_comparing(run.results),
        worst=_worst(run, last, split),
        durations=", ".join(f"{name} {seconds / 60:.1f} minutes" for name, seconds in run.durations.items()),
    )


def render(template: str, **values: Any) -> str:
    """A page from a template of this package, with its style and script inside it."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(asset)
    )
    environment.filters["picture"] = _picture
    page = environment.get_template(template)
    return page.render(**values, style=Markup(asset("page.css")), script=Markup(asset("sort.js")))


def last_stage(run: RunFiles, split: str) -> str:
    """The last stage that was evaluated on a split, else the last that was trained."""
    evaluated = [stage for stage, _ in run.rows(split)]
    return evaluated[-1] if evaluated else (run.stages[-1].name if run.stages else "")


def _picture(picture: Picture) -> Markup:
    light, dark = (base64.b64encode(image).decode() for image in (picture.light, picture.dark))
    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{}">'
        '<img alt="{}" src="data:image/png;base64,{}"></picture>'
    ).format(dark, picture.text, light)


def _facts(run: RunFiles) -> list[str]:
    """What was trained, in a few words."""
    manifest = next((stage.manifest for stage in reversed(run.stages) if stage.manifest), {})
    if not manifest:
        return []
    form = (manifest.get("config") or {}).get("model", {}).get("heads", "mctp")
    facts = [f"variant {manifest['variant']}", f"{manifest['n_heads']} {'MCTP' if form == 'mctp' else form} heads"]
    facts.append(f"interval ratio {' '.join(map(str, manifest['text_audio_interval_ratio']))}")
    facts.append(f"codec {manifest['codec']}")
    seed = manifest.get("config", {}).get("seed")
    return facts if seed is None else [*facts, f"seed {seed}"]


def _samples_of(stage: Stage) -> StageSamples | None:
    return None if stage.folder is None else read_stage_samples(stage.folder)


def _stage_facts(stage: Stage) -> str:
    facts = []
    if "steps" in stage.manifest:
        facts.append(f"{stage.manifest['steps']} steps")
    if stage.manifest.get("frozen"):
        facts.append(f"{stage.manifest['frozen']} tensors frozen, {stage.manifest['trained']} trained")
    speed = stage.curves.get("tokens_per_second")
    if speed is not None:
        facts.append(f"{sorted(speed.values)[len(speed.values) // 2]:,.0f} tokens/s")
    return ", ".join(facts)


@dataclass(frozen=True)
class WrongAnswer:
    """One utterance that was not right; `transcript` is None where there is no judge.

    Attributes:
        asked, sound: what was asked and the answer, where there is a sound.
    """

    id: str
    expected: str
    written: str
    transcript: str | None
    asked: Sound
    sound: Sound


def _worst(run: RunFiles, stage: str, split: str) -> list[tuple[str, str, list[WrongAnswer], int]]:
    """For each task and mode of a stage: its worst utterances among those that are not right, and how many these are."""
    found = []
    for result in run.results:
        if (result.stage, result.split) != (stage, split):
            continue
        wrong = [row for row in result.utterances if any(is_wrong(score) for score in row["scores"].values())]
        shown = [
            WrongAnswer(row["id"], row["reference"], row["text"], row.get("transcript"), *_sounds(result, row, number))
            for number, row in enumerate(wrong[:WORST])
        ]
        if shown:
            found.append((result.task, result.mode, shown, len(wrong)))
    return found


def _sounds(result: Result, row: dict[str, Any], place: int) -> tuple[Sound, Sound]:
    """Question and answer of the very worst as sound; a page that held more would load slowly."""
    if place >= WORST_WITH_SOUND:
        return Sound(), Sound()
    asked = sound_of(result.bench_folder, row["source"]) if "source" in row else Sound()
    return asked, sound_of(result.folder, row["audio"]) if "audio" in row else Sound()
