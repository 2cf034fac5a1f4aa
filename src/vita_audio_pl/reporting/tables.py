"""Tables as data, and as Markdown or on the terminal; the HTML page draws the same ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from vita_audio_pl.config.decoding import label_of
from vita_audio_pl.config.screen import markdown_text
from vita_audio_pl.evaluation.records import Measured
from vita_audio_pl.evaluation.scores.scoring import passes_by_id
from vita_audio_pl.reporting.results.files import Result
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.reporting.seeds import Estimate

SPEAKING_TASKS = ("tts", "sqa")


@dataclass(frozen=True)
class Cell:
    """One figure: as shown, as sorted by, and what stands small beside it (an interval)."""

    text: str
    value: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Headers and rows; the first `labels` columns are text, the others figures."""

    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    labels: int = 1
    caption: str = ""


_SHARE = "Share of Vanilla's"
COMPUTING = "CPU seconds (GPU: seconds) of computing for a second of audio"
ROUGH = (
    "Those of a shared machine, taken at different moments, are rough: python -m vita_audio_pl.benchmark and "
    "benchmarks/verification.py measure modes by turns."
)
USELESS = 0.9
"""Error rate from which on no speed is claimed: whatever is fast is then not speech."""
NOT_MEASURED = Cell("–")

FIGURES = (
    ("ASR WER", "asr", "wer"),
    ("TTS WER", "tts", "speech_wer"),
    ("Spoken QA, text", "sqa", "text_accuracy"),
    ("Spoken QA, speech", "sqa", "speech_accuracy"),
    ("Text QA", "text", "text_accuracy"),
)


def main_table(run: RunFiles, split: str) -> Table:
    """One row for each stage and mode: error rates, accuracies, backbone passes and their share of Vanilla's."""
    rows = []
    for stage, mode in run.rows(split):
        cells = [Cell(stage), Cell(mode)]
        for _, task, metric in FIGURES:
            cells.append(metric_cell(run.result(stage, mode, task, split), metric))
        spoken = [r for task in SPEAKING_TASKS if (r := run.result(stage, mode, task, split)) is not None]
        cells += [_passes(spoken), _share(run, spoken, stage, split), computing(spoken)]
        measured = {r.figures["utterances"] for r in run.results if (r.stage, r.mode, r.split) == (stage, mode, split)}
        cells.append(Cell(" to ".join(str(n) for n in sorted({min(measured), max(measured)})), min(measured)))
        rows.append(tuple(cells))
    headers = (
        "Stage", "Mode", *(name for name, _, _ in FIGURES), "Backbone passes per answer", _SHARE, COMPUTING,
        "Utterances per task",
    )  # fmt: skip
    spoken = [r for r in run.results if r.split == split and r.task in SPEAKING_TASKS]
    return Table(headers, tuple(rows), labels=2, caption=computing_note(spoken))


def _timed(results: Sequence[Result]) -> list[tuple[float, float, Measured]]:
    """Seconds of computing, seconds of audio, and how they were taken, of each answer that was timed and has sound."""
    return [
        (seconds, row["seconds"], measured)
        for result in results
        for row in result.utterances
        if row.get("seconds") and row["id"] in result.compute_seconds
        for seconds, measured in [result.compute_seconds[row["id"]]]
    ]


def computing(results: Sequence[Result]) -> Cell:
    """Measured seconds of generating a second of audio, and how many answers were decoded at a time."""
    timed = _timed(results)
    audio = sum(seconds for _, seconds, _ in timed)
    if not audio:
        return NOT_MEASURED
    value = sum(seconds for seconds, _, _ in timed) / audio
    return Cell(f"{value:.2g}", value, f"{_at_a_time(measured for _, _, measured in timed)} at a time")


def _at_a_time(found: Iterable[Measured]) -> str:
    counts = sorted({measured.together for measured in found})
    return " and ".join(str(count or "unknown number") for count in counts)


def computing_note(results: Sequence[Result]) -> str:
    """What a reader of `computing` has to know: how the figures were taken, and whether all were taken alike."""
    ways = sorted({measured for _, _, measured in _timed(results)})
    if not ways:
        return ""
    mixed = " Figures of different numbers at a time or machines are not to be compared." if len(ways) > 1 else ""
    return f"Seconds of computing were taken {'; '.join(map(str, ways))}.{mixed} {ROUGH}"


def small_world(results: Sequence[Result]) -> list[str]:
    """What a reader of figures of the generated corpus has to know first."""
    if not any(str(result.figures["bench"]).startswith("spoken_world") for result in results):
        return []
    return [
        "The small spoken world has 75 words, and its judge knows the grammar of its sentences: these figures compare what was "
        "trained and decoded here, and say nothing of open speech or of how well a person understands it."
    ]


def metric_cell(result: Result | None, metric: str) -> Cell:
    """A rate in percent with its 95 % interval."""
    if result is None or metric not in result.figures["metrics"]:
        return NOT_MEASURED
    figure = result.figures["metrics"][metric]
    return rate_cell(figure["value"], figure["low"], figure["high"])


def rate_cell(value: float, low: float, high: float) -> Cell:
    """A fraction shown in percent with its interval."""
    return Cell(f"{100 * value:.1f} %", value, f"{100 * low:.1f} to {100 * high:.1f}")


def estimate_cell(found: Estimate | None, shown: str, factor: float = 1.0) -> Cell:
    """A mean over seeds in a form such as `{:.1f} %`, with its 95 % interval where it has one."""
    if found is None:
        return NOT_MEASURED
    detail = "no spread" if found.n > 1 else ""
    if found.interval is not None:
        bare = shown.replace(" %", "").replace(" x", "")
        detail = " to ".join(signed(factor * end, bare) for end in found.interval)
    return Cell(signed(factor * found.mean, shown), found.mean, detail)


def signed(value: float, shown: str) -> str:
    """A number in a form such as `{:+.1f}`; what rounds to nothing has no minus."""
    text = shown.format(value)
    return text if any(digit in text for digit in "123456789") else shown.format(0.0)


def _passes(spoken: Sequence[Result]) -> Cell:
    asked = [result.figures["utterances"] - result.figures.get("failed", 0) for result in spoken]
    if not sum(asked):
        return NOT_MEASURED
    passes = sum(r.figures["backbone_passes"] * n for r, n in zip(spoken, asked, strict=True)) / sum(asked)
    return Cell(f"{passes:.1f}", passes)


def _share(run: RunFiles, spoken: Sequence[Result], stage: str, split: str) -> Cell:
    """Backbone passes over Vanilla's at the same stage, over the utterances that both answered."""
    mine = vanilla = 0
    for result in spoken:
        alike = ("model_digest", "sampling", "quantize")
        vanilla_mode = label_of(result.figures | {"mode": "vanilla", "verify": "none"})
        baseline = run.result(stage, vanilla_mode, result.task, split)
        if baseline is not None and all(baseline.figures.get(name) == result.figures.get(name) for name in alike):
            own, theirs = passes_by_id(result.utterances), passes_by_id(baseline.utterances)
            common = [id for id in own if id in theirs]
            mine += sum(own[id] for id in common)
            vanilla += sum(theirs[id] for id in common)
    return Cell(f"{100 * mine / vanilla:.0f} %", mine / vanilla) if vanilla else NOT_MEASURED


def metric_name(name: str, result: Mapping[str, Any]) -> str:
    """What a figure of a result is called.

    Speech of answers that only have to contain an accepted one is compared with the text beside it.
    """
    own = name == "speech_wer" and result["task"] == "sqa" and result.get("answer_rule") == "contains"
    return METRIC_NAMES[name] + (", against the text beside it" if own else "")


METRIC_NAMES = {
    "wer": "error rate of the transcript",
    "speech_wer": "error rate of the speech, as the judge transcribed it",
    "text_wer": "error rate of the text beside the speech",
    "text_accuracy": "accepted answers, text",
    "speech_accuracy": "accepted answers, speech as the judge transcribed it",
}


_COUNTS = {"silent": "Silent", "unfinished": "Cut off", "failed": "Could not be asked"}


def results_table(results: Sequence[dict[str, Any]]) -> Table:
    """Every figure of some results, one a row."""
    rows = []
    for result in results:
        for name, figure in result["metrics"].items():
            rows.append(
                (Cell(f"{result['stage']} {label_of(result)}"), Cell(f"{result['task']} {result['split']}"),
                 Cell(metric_name(name, result)), rate_cell(figure["value"], figure["low"], figure["high"]),
                 Cell(f"{result['backbone_passes']:.1f}", result["backbone_passes"]),
                 Cell(str(figure["utterances"]), figure["utterances"]),
                 *(Cell(str(count), count) for count in (result.get(name, 0) for name in _COUNTS)))
            )  # fmt: skip
    headers = ("Model", "Task", "Figure", "Value", "Backbone passes", "Utterances", *_COUNTS.values())
    return Table(headers, tuple(rows), labels=3)


def comparison_sentences(comparison: dict[str, Any]) -> list[str]:
    """What a paired comparison found, in words."""
    one, two = comparison["first"], comparison["second"]
    first, second = (f"{result['stage']} {label_of(result)}" for result in (one, two))
    sentences = [
        f"{second} against {first}, over {comparison['utterances']} common utterances "
        f"of {one['utterances']} and {two['utterances']}:"
    ]
    if comparison["differs"]:
        sentences.append(f"  besides the answers differ {', '.join(comparison['differs'])}")
    for name, difference in comparison["metrics"].items():
        sentences.append(
            f"  {METRIC_NAMES[name]}: {100 * difference['first']:.2f} % and {100 * difference['second']:.2f} %, "
            f"{100 * difference['value']:+.2f} points (95 % interval "
            f"{100 * difference['low']:+.2f} to {100 * difference['high']:+.2f}, p = {difference['p_value']:.4f})"
        )
    sentences.append(f"  backbone passes: {100 * comparison['backbone_passes_share']:.1f} % of the first's")
    answers = comparison.get("answers")
    if answers is not None:
        sentences.append(
            f"  answers: {100 * answers['changed']:.1f} % of them changed, by {100 * answers['edits']:.1f} edits for 100 words "
            "and codes of the first's"
        )
        if "seconds" in answers:
            sentences += _computing_sentences(answers)
        if "acceptance" in answers:
            sentences.append("  drafts that were kept: {:.1%} and {:.1%}".format(*answers["acceptance"]))
    return sentences


def _computing_sentences(answers: Mapping[str, Any]) -> list[str]:
    """Seconds of computing, and whether both sides' were taken alike."""
    one, two = ("; ".join(str(Measured(*way)) for way in side) for side in answers["measured"])
    sentence = "  CPU seconds (GPU: seconds) of computing an answer: {:.4g} and {:.4g}".format(*answers["seconds"])
    if answers["measured_alike"]:
        return [f"{sentence}, taken {one}", f"    {ROUGH}"]
    return [f"{sentence}, not to be compared: the first's were taken {one}, the second's {two}"]


def controls_table(run: RunFiles) -> Table:
    """What the judge makes of recordings whose text is known."""
    rows = [
        (Cell(row["recordings"]), Cell(row["condition"]), rate_cell(row["value"], row["low"], row["high"]),
         Cell(str(row["utterances"]), row["utterances"]))
        for row in run.controls.get("rows", [])
    ]  # fmt: skip
    return Table(("Recordings", "What the judge transcribed", "WER", "Utterances"), tuple(rows), labels=2)


def judges_table(run: RunFiles) -> Table:
    """The same sounds by two judges, of which the second does not know what may be said."""
    rows = [
        (Cell(row["heard"]), *(rate_cell(row[which]["value"], row[which]["low"], row[which]["high"])
         for which in ("first", "second")), Cell(str(row["utterances"]), row["utterances"]))
        for row in run.judges.get("rows", [])
    ]  # fmt: skip
    names = run.judges.get("judges", ["", ""])
    return Table(("What was heard", *(f"WER by {name}" for name in names), "Utterances"), tuple(rows))


def comparison_table(run: RunFiles, split: str, stage: str) -> Table:
    """A stage's modes beside Vanilla, both over the same utterances of a split, with the difference and its p-value."""
    rows = []
    for name, task, metric in FIGURES:
        for mode in (mode for of, mode in run.rows(split) if of == stage):
            comparison = _comparison(run, split, stage, mode, task)
            difference = {} if comparison is None else comparison["metrics"].get(metric, {})
            if not difference:
                continue
            points = Cell(
                f"{100 * difference['value']:+.1f}",
                difference["value"],
                f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}",
            )
            p_value = difference["p_value"]
            shown = Cell("< 0.001" if p_value < 0.001 else f"{p_value:.3f}", p_value)
            rates = (Cell(f"{100 * difference[which]:.1f} %", difference[which]) for which in ("first", "second"))
            count = Cell(str(difference["utterances"]), difference["utterances"])
            rows.append((Cell(name), Cell(mode), *rates, points, shown, count))
    headers = ("Figure", "Mode", "Vanilla", "This mode", "Points against Vanilla", "p", "Utterances, the same for both")
    return Table(headers, tuple(rows), labels=2)


def headline(run: RunFiles, stage: str, split: str) -> list[str]:
    """The results of a stage in a few sentences: what Vanilla reaches, and what each faster mode costs.

    A mode and the Vanilla that it stands beside have answered the same utterances.
    """
    sentences = small_world(run.results)
    reached = [
        (name, metric_cell(result, metric).text, result.figures["metrics"][metric]["utterances"])
        for name, task, metric in FIGURES
        if (result := run.result(stage, "vanilla", task, split)) is not None and metric in result.figures["metrics"]
    ]
    counts = {utterances for _, _, utterances in reached}
    if len(counts) == 1:
        rates = ", ".join(f"{name} {rate}" for name, rate, _ in reached)
        sentences.append(f"After {stage}, Vanilla reaches {rates}, each over {counts.pop()} utterances.")
    elif reached:
        rates = ", ".join(f"{name} {rate} ({utterances} utterances)" for name, rate, utterances in reached)
        sentences.append(f"After {stage}, Vanilla reaches {rates}.")
    for mode in (mode for of, mode in run.rows(split) if of == stage and mode != "vanilla"):
        comparison = _comparison(run, split, stage, mode, "tts")
        difference = {} if comparison is None else comparison["metrics"].get("speech_wer", {})
        if comparison is not None and difference and difference["second"] >= USELESS:
            sentences.append(
                f"{mode.capitalize()} has a TTS WER of {100 * difference['second']:.1f} %, so nothing is said of its speed."
            )
        elif comparison is not None and difference:
            sentences.append(
                f"{mode.capitalize()} speaks with {100 * comparison['backbone_passes_share']:.0f} % of the backbone passes "
                f"at a TTS WER of {100 * difference['second']:.1f} %, where Vanilla has {100 * difference['first']:.1f} % "
                f"over the same {difference['utterances']} utterances: {100 * difference['value']:+.1f} points "
                f"({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})."
            )
    return sentences


def _comparison(run: RunFiles, split: str, stage: str, mode: str, task: str) -> dict[str, Any] | None:
    """The shown result of a mode beside Vanilla over the same utterances, or None where they were not compared."""
    result = run.result(stage, mode, task, split)
    if result is None or not result.key:
        return None
    return next((found for found in run.comparisons if found["second"]["key"] == result.key), None)


def markdown(table: Table) -> str:
    """GitHub's Markdown; intervals in brackets."""
    lines = ["| " + " | ".join(table.headers) + " |"]
    lines.append("|" + "".join("---|" if column < table.labels else "---:|" for column in range(len(table.headers))))
    for row in table.rows:
        told = (markdown_text(f"{c.text} ({c.detail})" if c.detail else c.text) for c in row)
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def terminal(table: Table, title: str) -> TerminalTable:
    """For rich's console; the interval stands dim under its figure."""
    shown = TerminalTable(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column, header in enumerate(table.headers):
        shown.add_column(header, justify="left" if column < table.labels else "right")
    previous = None
    for row in table.rows:
        if previous not in (None, row[0].text):
            shown.add_section()
        previous = row[0].text
        shown.add_row(*(Text.assemble(c.text, "\n", (c.detail, "dim")) if c.detail else c.text for c in row))
    return shown
