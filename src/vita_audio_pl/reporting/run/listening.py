"""The utterances that a page lets its reader hear: the question, the expected answer, every mode's answer."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.results.files import Result
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.storage.recordings import AUDIO_TYPES, read_recording, recording_below

_TASKS = ("sqa", "tts")
_PROMPTS = 4  # of each task


@dataclass(frozen=True)
class Sound:
    """A sound inside a page.

    Attributes:
        uri: the file as a `data:` address, so that a page needs no file beside it; empty where there is none.
        problem: why a file that is named is not played.
    """

    uri: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Voice:
    """One thing to hear: who speaks, what is said (as text), what the judge heard, and the sound itself."""

    name: str
    text: str
    transcript: str | None = None
    sound: Sound = Sound()
    note: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Utterance:
    """One question with everything that was said to it."""

    id: str
    task: str
    reference: str
    voices: tuple[Voice, ...]


def sound_of(folder: Path, name: Any) -> Sound:
    """The recording that a file in `folder` names, if it is one and lies below `folder`; no other file is read."""
    try:
        path = recording_below(folder, name)
        content = read_recording(path)
    except UserError as error:
        return Sound(problem=str(error))
    return Sound(f"data:{AUDIO_TYPES[path.suffix.lower()]};base64,{base64.b64encode(content).decode()}")


def listening_examples(run: RunFiles, stage: str, split: str, most: int = _PROMPTS) -> list[Utterance]:
    """The kept utterances of the speaking tasks, `most` of each task."""
    found = []
    for task in _TASKS:
        results = [r for r in run.results if (r.stage, r.task, r.split) == (stage, task, split)]
        kept = _kept_everywhere(results)[:most]
        found += [_utterance(run, task, id, results) for id in kept]
    return found


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
        voices.append(Voice("question", "", sound=sound_of(results[0].bench_folder, any_row["source"])))
    if "spoken_reference" in any_row:
        sound = sound_of(results[0].bench_folder, any_row["spoken_reference"])
        voices.append(Voice("expected", any_row["reference"], sound=sound))
    through_codec = run.controls.get("resynthesis", {}).get(f"{task}.{id}")
    if through_codec is not None:
        sound = sound_of(run.folder / "eval" / run.bench, through_codec)
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
        row.get("transcript"),
        sound_of(result.folder, row["audio"]) if "audio" in row else Sound(),
        f"{row['backbone_passes']} backbone passes",
        right,
    )
