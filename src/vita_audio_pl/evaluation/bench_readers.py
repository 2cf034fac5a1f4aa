"""Readers of public benches as their publishers lay them out: a place on disk and a task -> items."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.items import Item, asr_item, read_objects, read_samples, read_text, sqa_item, tts_item

_AISHELL_SPEAKER = len("BAC009S0764")  # of BAC009S0764W0121, speaker and utterance

Reader = Callable[[Path, str, Path], Iterable[Item]]
"""`(place, task, root) -> items`; the place is the file or folder below root that the bench file names for a split."""


def read_transcribed(pairs: Iterable[tuple[str, Path, str]], task: str) -> Iterable[Item]:
    """Recordings with transcripts `(id, audio, text)`: heard for asr, spoken for tts."""
    for id, audio, text in pairs:
        yield asr_item(id, audio, text) if task == "asr" else tts_item(id, text, recording=audio)


def librispeech(place: Path, task: str, root: Path) -> Iterable[Item]:
    """LibriSpeech: `<speaker>/<chapter>/<speaker>-<chapter>.trans.txt` with the FLAC files beside it."""
    files = _existing(sorted(place.glob("*/*/*.trans.txt")), place, "*/*/*.trans.txt")
    pairs = [(id, file.with_name(f"{id}.flac"), text) for file in files for id, text in _named_lines(file)]
    _refuse_without({path.stem for path in place.glob("*/*/*.flac")} - {id for id, _, _ in pairs}, "transcript", place)
    return read_transcribed(pairs, task)


def libritts(place: Path, task: str, root: Path) -> Iterable[Item]:
    """LibriTTS: `<speaker>/<chapter>/<id>.normalized.txt` with `<id>.wav` beside it."""
    files = _existing(sorted(place.glob("*/*/*.normalized.txt")), place, "*/*/*.normalized.txt")
    names = [file.name.removesuffix(".normalized.txt") for file in files]
    _refuse_without({path.stem for path in place.glob("*/*/*.wav")} - set(names), "normalized.txt", place)
    pairs = ((id, file.with_name(f"{id}.wav"), read_text(file).strip()) for id, file in zip(names, files, strict=True))
    return read_transcribed(pairs, task)


def kaldi(place: Path, task: str, root: Path) -> Iterable[Item]:
    """Kaldi's `wav.scp` with `text` (or AISHELL-2's `trans.txt`); commands in `wav.scp` are refused."""
    transcript = next((place / name for name in ("text", "trans.txt") if (place / name).is_file()), place / "text")
    audio = {}
    for id, path in _named_lines(place / "wav.scp"):
        if "|" in path:
            raise UserError(f"{place / 'wav.scp'}: '{id}' is a command, not a file; write the audio to files first")
        audio[id] = Path(path) if Path(path).is_absolute() else place / path
    pairs = []
    for id, text in _named_lines(transcript):
        if id not in audio:
            raise UserError(f"{transcript}: '{id}' has a transcript but is not in wav.scp")
        pairs.append((id, audio[id], text))
    _refuse_without(audio.keys() - {id for id, _, _ in pairs}, "transcript", transcript)
    return read_transcribed(pairs, task)


def aishell(place: Path, task: str, root: Path) -> Iterable[Item]:
    """AISHELL-1: `wav/<split>/**.wav` with one `transcript/*.txt` for all splits; the characters are set with blanks."""
    (transcript,) = _existing(sorted(root.glob("transcript/*.txt")), root, "transcript/*.txt")[:1]
    texts = dict(_named_lines(transcript))
    recordings = {path.stem: path for path in _existing(sorted(place.rglob("*.wav")), place, "**.wav")}
    speakers = {id[:_AISHELL_SPEAKER] for id in recordings}
    _refuse_without(recordings.keys() - texts.keys(), "transcript", transcript)
    _refuse_without({id for id in texts if id[:_AISHELL_SPEAKER] in speakers} - recordings.keys(), "recording", place)
    pairs = ((id, path, texts[id].replace(" ", "")) for id, path in recordings.items())
    return read_transcribed(pairs, task)


def fleurs(place: Path, task: str, root: Path) -> Iterable[Item]:
    """FLEURS: `<split>.tsv` (id, file, raw transcript, transcript, ...) with `audio/<split>/<file>` beside it."""
    pairs = []
    for number, line in enumerate(read_text(place).splitlines(), 1):
        columns = line.split("\t")
        if len(columns) < 4:
            raise UserError(f"{place}:{number}: expected tab-separated columns id, file, raw transcript, transcript")
        # The first column numbers sentences, which several people read
        pairs.append((Path(columns[1]).stem, place.parent / "audio" / place.stem / columns[1], columns[3]))
    return read_transcribed(pairs, task)


def seed_tts(place: Path, task: str, root: Path) -> Iterable[Item]:
    """Seed-TTS-eval `meta.lst`: `id|prompt_text|prompt_wav|text`; the prompt recording gives the voice."""
    for number, line in enumerate(read_text(place).splitlines(), 1):
        columns = line.split("|")
        if len(columns) < 4:
            raise UserError(f"{place}:{number}: expected id|prompt_text|prompt_wav|text")
        yield tts_item(columns[0], columns[3], voice_prompt=place.parent / columns[2])


def questions(place: Path, task: str, root: Path) -> Iterable[Item]:
    """Spoken questions: JSONL or CSV with `audio`, and `answers` (a list; in CSV separated by `|`) or `answer`.

    `id` is optional; the recording's name stands in for it.
    """
    if place.suffix == ".csv":
        rows = list(csv.DictReader(read_text(place).splitlines()))
    else:
        rows = [row for _, row in read_objects(place, "a question must be an object with 'audio' and 'answers'")]
    for number, row in enumerate(rows, 1):
        answers = row.get("answers") or row.get("answer")
        if not row.get("audio") or not answers:
            raise UserError(f"{place}: question {number} needs 'audio' and 'answers'")
        if isinstance(answers, str):
            answers = [answer.strip() for answer in answers.split("|")]
        audio = Path(row["audio"])
        yield sqa_item(
            str(row.get("id") or audio.stem), audio if audio.is_absolute() else place.parent / audio, answers
        )


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


def _named_lines(path: Path) -> list[tuple[str, str]]:
    """Lines `id rest`."""
    pairs = (line.strip().split(maxsplit=1) for line in read_text(path).splitlines() if line.strip())
    return [(pair[0], pair[1] if len(pair) > 1 else "") for pair in pairs]


def _refuse_without(ids: Iterable[str], what: str, place: Path) -> None:
    """Refuses utterances that would otherwise be missing from the denominator."""
    found = sorted(ids)
    if found:
        raise UserError(
            f"{place}: {len(found)} utterances have no {what}, the first is '{found[0]}'; "
            "complete the bench, since figures over a part of it are not its figures"
        )


def _existing(found: list[Path], place: Path, pattern: str) -> list[Path]:
    if not found:
        raise UserError(f"{place} holds no {pattern}; check bench.root, it must be the folder as published")
    return found
