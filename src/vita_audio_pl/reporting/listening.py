"""The utterances that a page lets its reader hear: the question, the expected answer, every mode's answer."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vita_audio_pl.reporting.result_files import RECORDED, Result
from vita_audio_pl.reporting.run_files import RunFiles

_TASKS = ("sqa", "tts")
_PROMPTS = 4  # of each task
_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}


@dataclass(frozen=True)
class Voice:
    """One thing to hear: who speaks, what is said (as text), what the judge heard, and the sound itself."""

    name: str
    text: str
    heard: str | None = None
    sound: str = ""  # data URI; empty where there is no audio
    note: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Utterance:
    """One question with everything that was said to it."""

    id: str
    task: str
    reference: str
    voices: tuple[Voice, ...]


def data_uri(path: Path) -> str:
    """The file as a `data:` address, so that a page needs no file beside it; empty if the file is not there."""
    if not path.is_file():
        return ""
    return f"data:{_TYPES.get(path.suffix, 'audio/wav')};base64,{base64.b64encode(path.read_bytes()).decode()}"


def utterances_to_hear(run: RunFiles, stage: str, split: str, most: int = _PROMPTS) -> list[Utterance]:
    """The kept utterances of the speaking tasks, `most` of each task."""
    found = []
    for task in _TASKS:
        results = [r for r in run.results if (r.stage, r.task, r.split) == (stage, task, split)]
        kept = _kept_everywhere(results)[:most]
        found += [_utterance(run, task, id, results) for id in kept]
    return found


def recordings_to_hear(run: RunFiles) -> list[str]:
    """The files outside the run that its pages play: questions and expected answers of the kept utterances."""
    found: dict[str, None] = {}
    for stage, split in dict.fromkeys((result.stage, result.split) for result in run.results):
        for task in _TASKS:
            results = [r for r in run.results if (r.stage, r.task, r.split) == (stage, task, split)]
            kept = _kept_everywhere(results)[:_PROMPTS]
            rows = [row for result in results[:1] for row in result.utterances if row["id"] in kept]
            found |= dict.fromkeys(row[name] for row in rows for name in RECORDED if name in row)
    return list(found)


def _kept_everywhere(results: Sequence[Result]) -> list[str]:
    """Ids whose audio every mode kept, in the order of the bench."""
    ids = [{row["id"] for row in result.utterances if "audio" in row or row.get("silent")} for result in results]
    kept = [{row["id"] for row in result.utterances if "audio" in row} for result in results]
    return sorted(set.intersection(*ids) & set.union(*kept)) if results else []


def _utterance(run: RunFiles, task: str, id: str, results: Sequence[Result]) -> Utterance:
    rows = {result.mode: next(row for row in result.utterances if row["id"] == id) for result in results}
    any_row = next(iter(rows.values()))
    voices = []
    if "source" in any_row:
        voices.append(Voice("question", "", sound=data_uri(Path(any_row["source"]))))
    if "spoken_reference" in any_row:
        voices.append(Voice("expected", any_row["reference"], sound=data_uri(Path(any_row["spoken_reference"]))))
    through_codec = run.controls.get("resynthesis", {}).get(f"{task}.{id}")
    if through_codec is not None:
        sound = data_uri(run.folder / "eval" / run.bench / through_codec)
        voices.append(Voice("expected, through the codec", any_row["reference"], sound=sound))
    for result in results:
        voices.append(_answer(result, rows[result.mode]))
    return Utterance(id, task, any_row["reference"], tuple(voices))


def _answer(result: Result, row: dict[str, Any]) -> Voice:
    score = row["scores"].get("speech_accuracy") or row["scores"].get("speech_wer") or {}
    right = bool(score["hits"]) if "hits" in score else score["errors"] == 0 if "errors" in score else None
    return Voice(
        result.mode,
        row["text"],
        row.get("heard"),
        data_uri(result.folder / row["audio"]) if "audio" in row else "",
        f"{row['backbone_passes']} backbone passes",
        right,
    )
