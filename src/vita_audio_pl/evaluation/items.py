"""Evaluation items: prompt, references and recordings of an utterance."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.names import storable
from vita_audio_pl.text.conversation import ASR_INSTRUCTION, TTS_INSTRUCTION, Conversation
from vita_audio_pl.text.lines import load_json, read_lines
from vita_audio_pl.text.messages import Message
from vita_audio_pl.text.vocabulary import AUDIO_PLACEHOLDER

TASKS = ("asr", "tts", "sqa", "text")
_SHOWN = 5  # names listed in a message
_ADDRESS = re.compile(r"data:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LONGEST_NAME = 255  # longest file name in bytes on common file systems


@dataclass(frozen=True)
class Item:
    """One question to the model.

    Attributes:
        prompt: the conversation before the model's answer; its id is unique in a set.
        references: accepted answers as text; error rates are computed against the first.
        spoken_reference: recording of the expected answer, if there is one.
    """

    prompt: Conversation
    references: tuple[str, ...]
    spoken_reference: Path | None = None

    @property
    def id(self) -> str:
        return self.prompt.id

    @property
    def source(self) -> Path | None:
        """The recording to transcribe or answer (the last of the prompt); None for a text question."""
        return Path(self.prompt.audios[-1]) if self.prompt.audios else None

    @property
    def voice(self) -> Path | None:
        """The recording of the voice in the system turn."""
        first = self.prompt.messages[0]
        return Path(self.prompt.audios[0]) if first.role == "system" and first.n_audios else None


def asr_item(id: str, audio: Path, transcript: str) -> Item:
    """Speech recognition: from a recording to its transcript."""
    return Item(_prompt(id, [("user", f"{ASR_INSTRUCTION}\n{AUDIO_PLACEHOLDER}")], [audio]), (transcript,))


def tts_item(id: str, text: str, voice_prompt: Path | None = None, recording: Path | None = None) -> Item:
    """Speech synthesis; `voice_prompt` is a recording of the voice to use, for the system turn."""
    voice = [] if voice_prompt is None else [("system", f"Your Voice: {AUDIO_PLACEHOLDER}\n")]
    audios = [] if voice_prompt is None else [voice_prompt]
    return Item(_prompt(id, [*voice, ("user", f"{TTS_INSTRUCTION}\n{text}")], audios), (text,), recording)


def sqa_item(id: str, audio: Path, answers: Iterable[str]) -> Item:
    """Spoken question answering."""
    return Item(_prompt(id, [("user", AUDIO_PLACEHOLDER)], [audio]), tuple(answers))


def _prompt(id: str, messages: list[tuple[str, str]], audios: list[Path]) -> Conversation:
    return Conversation(id, tuple(Message(*message) for message in messages), tuple(str(path) for path in audios))


def sample_item(sample: dict[str, Any], task: str, where: str, root: Path) -> Item:
    """Item from a sample in the project's format; its last assistant turn is the reference.

    A key `answers` (list of strings) replaces the text of that turn.

    Raises:
        UserError: keys that are missing or of the wrong kind, or audio placeholders and paths that do not match.
    """
    conversation = Conversation.from_json(sample, where)
    if conversation.messages[-1].role != "assistant" or len(conversation.messages) < 2:
        raise UserError(f"{where}: the last turn must be the assistant's, it is what the answer is compared with")
    *asked, answer = conversation.messages
    audios = tuple(str(recording(path, where, root, or_here=True)) for path in conversation.audios)
    n_asked = sum(message.n_audios for message in asked)
    prompt = Conversation(conversation.id, tuple(asked), audios[:n_asked])
    if "answers" in sample:
        references = accepted_answers(sample["answers"], where)
    elif task == "tts":
        references = [asked[-1].content.replace(TTS_INSTRUCTION, "").strip()]
    else:
        references = [answer.content.replace(AUDIO_PLACEHOLDER, "").strip()]
    return Item(prompt, tuple(references), Path(audios[n_asked]) if answer.n_audios else None)


def read_samples(path: Path, task: str, root: Path) -> list[Item]:
    """Items of a JSONL file in the project's format; a sample without `id` is named by its file and line.

    Relative audio paths are resolved from the current directory, then from `root`.

    Raises:
        UserError: the file is missing, or a line cannot be used; the sentence names the line.
    """
    lines = read_objects(path, "a sample must be an object with 'messages'")
    return [sample_item(sample, task, where, root) for where, sample in lines]


def read_objects(path: Path, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`file:line` and object of each line of a JSONL file, without empty lines.

    Raises:
        UserError: the file is missing, or a line is not JSON, or no object, for which `expected` says what it should
            be.
    """
    for where, line in bench_lines(path):
        try:
            row = load_json(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}); each line must hold one whole object") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: {expected}")
        yield where, row


def bench_lines(path: Path, blank: bool = False) -> Iterator[tuple[str, str]]:
    """`file:line` and text of each line of a bench file, those with nothing but blanks only if `blank`.

    Raises:
        UserError: the file is missing, or a line cannot be read: without it the bench is not the bench.
    """
    if not path.is_file():
        raise UserError(f"the bench file {path} does not exist; check bench.root, or prepare the bench first")
    for line in read_lines(path):
        where = f"{path}:{line.number}"
        if line.problem:
            raise UserError(
                f"{where}: {line.problem}; correct it, since figures over the other lines are not the bench's"
            )
        if blank or line.text.strip(" \t"):
            yield where, line.text


def accepted_answers(value: Any, where: str) -> list[str]:
    """A list of texts.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{where}: 'answers' must be a list of texts")
    return value


def recording(name: Any, where: str, folder: Path, or_here: bool = False) -> Path:
    """The path of a file in a bench; a relative one starts from `folder`.

    Args:
        where: for messages.
        or_here: a file of that name below the current directory comes first.

    Raises:
        UserError: it is an address, or not a valid file name.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: a recording must be given as a path")
    if _ADDRESS.match(name):
        raise UserError(f"{where}: the recording is the address {name[:40]}...; write it to a file and give its path")
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        raise UserError(f"{where}: the recording's name {storable(name)[:40]!r}... is none that a file can have")
    path = Path(name)
    return path if path.is_absolute() or (or_here and path.exists()) else folder / path


def check_items(
    items: Iterable[Item], where: str, normalise: Callable[[str], Sequence[str]] = str.split
) -> tuple[Item, ...]:
    """Validated items: refused as a whole if results could be lost or could not be computed.

    Ids are converted to a form that can be stored.

    Args:
        normalise: normalisation of the references.

    Raises:
        UserError: no items, a duplicate id, or references that normalise to nothing.
    """
    seen: dict[str, Item] = {}
    empty = []
    for item in items:
        id = storable(item.id)
        if id in seen:
            raise UserError(f"{where}: the id '{id[:80]}' occurs twice; ids must be unique, or results would be lost")
        if any(storable(text) != text for text in item.references):
            raise UserError(
                f"{where}: utterance '{id[:80]}' expects an unpaired surrogate; write the file as UTF-8 again"
            )
        # some normalisers keep dots and symbols, which are never spoken
        units = normalise(item.references[0]) if item.references else []
        if not any(char.isalnum() for unit in units for char in unit):
            empty.append(f"'{id[:80]}' ({item.references[0][:20]!r})" if item.references else f"'{id[:80]}'")
        seen[id] = replace(item, prompt=replace(item.prompt, id=id))
    if empty:
        more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
        raise UserError(
            f"{where}: nothing can be scored against an empty reference, and normalised {len(empty)} of {len(seen)} are: "
            f"utterance {', '.join(empty[:_SHOWN])}{more}; remove them, or choose another bench.normaliser"
        )
    if not seen:
        raise UserError(f"{where} holds no utterances")
    return tuple(seen.values())


def check_audio(items: Iterable[Item]) -> None:
    """Refuse at once what would fail after an hour.

    Raises:
        UserError: missing recordings; with their number and the first one.
    """
    missing = [path for item in items for path in item.prompt.audios if not Path(path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} recordings of the bench are missing, the first is {missing[0]}; "
            "fetch them, or give missing_audio=count to score them as empty answers"
        )
