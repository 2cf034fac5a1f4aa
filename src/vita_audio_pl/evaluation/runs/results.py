"""Result files of an evaluation: JSON for programs, Markdown for people, and one line per utterance."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vita_audio_pl.config.decoding import label_of
from vita_audio_pl.config.screen import markdown_text
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.identity import RESULT_FORMAT
from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.evaluation.runs.jobs import Evaluation, audio_file
from vita_audio_pl.evaluation.runs.runner import Records
from vita_audio_pl.evaluation.scores.scoring import Scoring, score_utterances, summarise, worst_first
from vita_audio_pl.evaluation.sealed import write_figures
from vita_audio_pl.storage.files import atomic_write
from vita_audio_pl.storage.recordings import read_recording

METRIC_LABELS = {
    "wer": "WER of the transcript",
    "speech_wer": "WER of the speech, as the judge transcribed it",
    "text_wer": "WER of the text written beside the speech",
    "text_accuracy": "accepted answers, text",
    "speech_accuracy": "accepted answers, speech as the judge transcribed it",
}
VOICE_LABELS = {
    "similarity": "likeness to the prompted voice, cosine",
    "naturalness": "naturalness, predicted mean opinion score",
}


def score_record(record: Records, rules: Scoring) -> list[dict[str, Any]]:
    """Rows of a complete evaluation under a profile, worst first."""
    evaluation = record.evaluation
    answers = {item.id: record.answer_of(item.id) for item in evaluation.items}
    transcripts = {id: record.transcript_of(id) for id in answers} if evaluation.is_transcribed else None
    rows = score_utterances(evaluation.task, evaluation.items, answers, transcripts, rules)
    return worst_first(evaluation.task, rows)


def write_results(record: Records, rules: Scoring, about: dict[str, Any]) -> dict[str, Any]:
    """Score a complete evaluation and write `result.json`, `result.md` and `utterances.jsonl` (worst first).

    Under a profile other than `strict` the files carry its name: `result.reference.json`. The files depend only on
    the records and the stored audio: a resumed evaluation writes identical bytes.

    Args:
        about: what is also stated in the result, e.g. the normaliser's name and the published figures.

    Returns:
        The contents of `result.json`.
    """
    evaluation = record.evaluation
    rows = score_record(record, rules)
    items = {item.id: item for item in evaluation.items}
    for row in rows:
        row["content"] = record.content(row["id"]).whole
        kept = audio_file(row["id"])
        if (evaluation.folder / kept).is_file():
            row["audio"] = kept
        for name, _, copy in _recordings(record, items[row["id"]]):
            if copy.is_file():
                row[name] = copy.relative_to(evaluation.bench_folder).as_posix()
    result = _header(evaluation, rules) | about | summarise(evaluation.task, rows, rules.average)
    suffix = "" if rules.profile.name == "strict" else f".{rules.profile.name}"
    folder = evaluation.folder
    utterances = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    # the result last: if it exists, so do its utterances
    atomic_write(folder / f"utterances{suffix}.jsonl", utterances)
    atomic_write(folder / f"result{suffix}.md", markdown(result).encode())
    write_figures(folder / f"result{suffix}.json", result, utterances)
    return result


def keep_recordings(record: Records, ids: Iterable[str]) -> None:
    """Copy the recordings of questions and expected answers below the bench's folder, where pages play them from.

    Recordings that a page would not play, or that are missing, are not copied; their rows keep the bench's path.
    """
    wanted = set(ids)
    for item in record.evaluation.items:
        for _, recording, copy in _recordings(record, item) if item.id in wanted else ():
            try:
                content = read_recording(recording)
            except UserError:
                continue
            if not copy.is_file() or copy.read_bytes() != content:
                copy.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(copy, content, flush=False)


def _recordings(record: Records, item: Item) -> Iterator[tuple[str, Path, Path]]:
    """A recording's key in a row, its path in the bench, and the path of its copy."""
    folder = record.evaluation.bench_folder / "recordings"
    for name, recording in (("source", item.source), ("spoken_reference", item.spoken_reference)):
        if recording is not None:
            yield name, recording, folder / f"{record.content(item.id).whole}.{name}{recording.suffix.lower()}"


def _header(evaluation: Evaluation, rules: Scoring) -> dict[str, Any]:
    identity = evaluation.identity
    return {
        "format": RESULT_FORMAT,
        "key": identity.key,
        "stage": evaluation.stage,
        "bench": evaluation.bench,
        "split": evaluation.split,
        "task": evaluation.task,
        **evaluation.decoding.facts,
        "precision": identity.answering["precision"],
        "profile": rules.profile.name,
        "profile_differences": rules.differences(),
        "answer_rule": rules.answers,
        "limited_to": len(evaluation.items) if evaluation.limited else None,
        "judge": evaluation.judge if evaluation.is_transcribed else "",
        "listening": dict(identity.listening),
        "scoring": dict(identity.scoring),
        "unreadable": identity.unreadable,
        "model": str(evaluation.model),
        "model_digest": identity.model,
        "weights": identity.weights,
        "utterance_set": identity.utterances,
    }


def metric_label(name: str, result: dict[str, Any]) -> str:
    """Title of a metric; for spoken answers that only have to contain an accepted one, see `Scoring`."""
    own = name == "speech_wer" and result["task"] == "sqa" and result["answer_rule"] == "contains"
    return METRIC_LABELS[name] + (", against the text written beside it" if own else "")


def markdown(result: dict[str, Any]) -> str:
    """One result as a small Markdown page."""
    lines = [
        "# " + markdown_text("{bench} {split}: {task}, {stage}, ".format_map(result) + label_of(result)),
        "",
        f"{result['utterances']} utterances, profile `{result['profile']}`, 95 % intervals by bootstrap over utterances.",
        "",
        "| | value | 95 % interval |",
        "|---|---:|---:|",
    ]
    for name, metric in result["metrics"].items():
        lines.append(f"| {metric_label(name, result)} | {percent(metric['value'])} | {interval(metric)} |")
    for name, figure in result["voice"].items():
        lines.append(f"| {VOICE_LABELS[name]} ({figure['utterances']} answers) | {figure['mean']:.3f} | |")
    lines += [
        f"| backbone passes per answer | {result['backbone_passes']:.1f} | |",
        f"| tokens per answer | {result['tokens']:.1f} | |",
        f"| answers without audio | {result['silent']} | |",
        f"| answers cut at the token limit | {result['unfinished']} | |",
        f"| utterances that could not be asked | {result['failed']} | |",
    ]
    if result["profile_differences"]:
        lines += ["", "This profile differs from `strict`:"]
        lines += [f"- {sentence}" for sentence in result["profile_differences"]]
    return "\n".join(lines) + "\n"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def interval(metric: dict[str, Any]) -> str:
    return f"{100 * metric['low']:.1f} to {100 * metric['high']:.1f} %"
