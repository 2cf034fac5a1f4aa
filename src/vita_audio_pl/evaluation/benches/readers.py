"""Readers of public benches in their published layout: from a path and a task to items."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.items import (
    Item,
    accepted_answers,
    asr_item,
    bench_lines,
    read_objects,
    read_samples,
    recording,
    sqa_item,
    tts_item,
)
from vita_audio_pl.text.lines import split_fields

_AISHELL_SPEAKER = len("BAC009S0764")  # of BAC009S0764W0121, speaker and utterance

_QUESTION = "a question must be an object with 'audio' and 'answers'"

Reader = Callable[[Path, str, Path], Iterable[Item]]
"""`(place, task, root) -> items`; `place` is the file or folder below `root` that the bench file names for a split."""


def read_transcribed(pairs: Iterable[tuple[str, Path, str]], task: str) -> Iterable[Item]:
    """Items from recordings with transcripts `(id, audio, text)`: the audio is the input for asr, the text for tts."""
    for id, audio, text in pairs:
        yield asr_item(id, audio, text) if task == "asr" else tts_item(id, text, recording=audio)


def librispeech(place: Path, task: str, root: Path) -> Iterable[Item]:
    """LibriSpeech: `<speaker>/<chapter>/<speaker>-<chapter>.trans.txt` with the FLAC files beside it."""
    files = _existing(place, "*/*/*.trans.txt")
    lines = [(file, id, text) for file in files for id, text in _named_lines(file)]
    _refuse_without(
        {path.stem for path in _files(place, "*/*/*.flac")} - {id for _, id, _ in lines}, "transcript", place
    )
    pairs = [(id, recording(f"{id}.flac", str(file), file.parent), text) for file, id, text in lines]
    return read_transcribed(pairs, task)


def libritts(place: Path, task: str, root: Path) -> Iterable[Item]:
    """LibriTTS: `<speaker>/<chapter>/<id>.normalized.txt` with `<id>.wav` beside it."""
    files = _existing(place, "*/*/*.normalized.txt")
    names = [file.name.removesuffix(".normalized.txt") for file in files]
    _refuse_without({path.stem for path in _files(place, "*/*/*.wav")} - set(names), "normalized.txt", place)
    pairs = (
        (id, file.with_name(f"{id}.wav"), "\n".join(line.strip() for _, line in bench_lines(file)))
        for id, file in zip(names, files, strict=True)
    )
    return read_transcribed(pairs, task)


def kaldi(place: Path, task: str, root: Path) -> Iterable[Item]:
    """Kaldi's `wav.scp` with `text` (or AISHELL-2's `trans.txt`); commands in `wav.scp` are refused."""
    transcript = next((place / name for name in ("text", "trans.txt") if (place / name).is_file()), place / "text")
    audio = {}
    for id, path in _named_lines(place / "wav.scp"):
        if "|" in path:
            raise UserError(f"{place / 'wav.scp'}: '{id}' is a command, not a file; write the audio to files first")
        audio[id] = recording(path, f"{place / 'wav.scp'}: '{id}'", place)
    pairs = []
    for id, text in _named_lines(transcript):
        if id not in audio:
            raise UserError(f"{transcript}: '{id}' has a transcript but is not in wav.scp")
        pairs.append((id, audio[id], text))
    _refuse_without(audio.keys() - {id for id, _, _ in pairs}, "transcript", transcript)
    return read_transcribed(pairs, task)


def aishell(place: Path, task: str, root: Path) -> Iterable[Item]:
    """AISHELL-1: `wav/<split>/**.wav` with one `transcript/*.txt` for all splits; its characters are separated by blanks."""
    transcript = _existing(root, "transcript/*.txt")[0]
    texts = dict(_named_lines(transcript))
    recordings = {path.stem: path for path in _existing(place, "**/*.wav")}
    speakers = {id[:_AISHELL_SPEAKER] for id in recordings}
    _refuse_without(recordings.keys() - texts.keys(), "transcript", transcript)
    _refuse_without({id for id in texts if id[:_AISHELL_SPEAKER] in speakers} - recordings.keys(), "recording", place)
    pairs = ((id, path, texts[id].replace(" ", "")) for id, path in recordings.items())
    return read_transcribed(pairs, task)


def fleurs(place: Path, task: str, root: Path) -> Iterable[Item]:
    """FLEURS: `<split>.tsv` (id, file, raw transcript, transcript, ...) with `audio/<split>/<file>` beside it."""
    pairs = []
    for where, line in bench_lines(place):
        columns = line.split("\t")
        if len(columns) < 4:
            raise UserError(f"{where}: expected tab-separated columns id, file, raw transcript, transcript")
        # The first column numbers sentences, which several people read
        audio = recording(columns[1], where, place.parent / "audio" / place.stem)
        pairs.append((audio.stem, audio, columns[3]))
    return read_transcribed(pairs, task)


def seed_tts(place: Path, task: str, root: Path) -> Iterable[Item]:
    """Seed-TTS-eval `meta.lst`: `id|prompt_text|prompt_wav|text`; the prompt recording gives the voice."""
    for where, line in bench_lines(place):
        columns = line.split("|")
        if len(columns) < 4:
            raise UserError(f"{where}: expected id|prompt_text|prompt_wav|text")
        yield tts_item(columns[0], columns[3], voice_prompt=recording(columns[2], where, place.parent))


def questions(place: Path, task: str, root: Path) -> Iterable[Item]:
    """Spoken questions: JSONL or CSV with `audio`, and `answers` (a list; in CSV separated by `|`) or `answer`.

    `id` is optional; the recording's name is used instead.
    """
    rows = _csv_rows(place) if place.suffix == ".csv" else read_objects(place, _QUESTION)
    for where, row in rows:
        answers = row.get("answers") or row.get("answer")
        if not row.get("audio") or not answers:
            raise UserError(f"{where}: a question needs 'audio' and 'answers'")
        if isinstance(answers, str):
            answers = [answer.strip() for answer in answers.split("|")]
        audio = recording(row["audio"], where, place.parent)
        id = row.get("id") or audio.stem
        if not isinstance(id, str | int):
            raise UserError(f"{where}: 'id' must be a name or a number")
        yield sqa_item(str(id), audio, accepted_answers(answers, where))


READERS: dict[str, Reader] = {
    "samples": read_samples,
    "librispeech": librispeech,
    "libritts": libritts,
    "kaldi": kaldi,
    "aishell": aishell,
    "fleurs": fleurs,
    "seed_tts": seed_tts,
    "questions": questions,
}


_LONGEST_FIELD = 131_072


def _csv_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """`file:line` and row of a CSV file with a header; a quoted field may contain line ends."""
    rows = csv.DictReader((f"{line}\n" for _, line in bench_lines(path, blank=True)), strict=True)
    try:
        for number, row in enumerate(rows, 1):
            # csv's own limit is global to the process, and readers of corpora raise it
            if any(isinstance(value, str) and len(value) > _LONGEST_FIELD for value in row.values()):
                raise UserError(f"{path}: row {number}: not CSV (a field of more than {_LONGEST_FIELD} characters)")
            yield f"{path}: row {number}", row
    except csv.Error as error:
        raise UserError(f"{path}: after row {rows.line_num - 1}: not CSV ({error})") from None


def _named_lines(path: Path) -> list[tuple[str, str]]:
    """Lines `id rest`; refuses duplicate ids."""
    found: dict[str, str] = {}
    for where, line in bench_lines(path):
        id, *rest = split_fields(line, 2)
        if id in found:
            raise UserError(f"{where}: '{id}' comes a second time; ids must be unique, or results would be lost")
        found[id] = rest[0] if rest else ""
    return list(found.items())


def _refuse_without(ids: Iterable[str], what: str, place: Path) -> None:
    """Refuse a bench with missing utterances, which would silently leave the denominator."""
    found = sorted(ids)
    if found:
        raise UserError(
            f"{place}: {len(found)} utterances have no {what}, the first is '{found[0]}'; "
            "complete the bench, since figures over a part of it are not its figures"
        )


def _existing(place: Path, pattern: str) -> list[Path]:
    found = _files(place, pattern)
    if not found:
        raise UserError(f"{place} holds no {pattern}; check bench.root, it must be the folder as published")
    return found


def _files(place: Path, pattern: str) -> list[Path]:
    """Files in order, without hidden ones: macOS puts a `._name` beside each."""
    return sorted(path for path in place.glob(pattern) if not path.name.startswith("."))
