"""Tables in the Hugging Face layout: folders of parquet, JSONL, JSON, CSV or TSV files whose columns the recipe names."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vita_audio_pl.config.fields import did_you_mean
from vita_audio_pl.data.readers.base import (
    EACH,
    NO_AUDIO,
    NO_SAMPLE,
    NO_TEXT,
    AudioRef,
    LeftOut,
    Part,
    RawSample,
    Recorded,
    Unreadable,
    attempt,
    audio_ref,
    broken_part,
    file_identities,
    parts_matching,
)
from vita_audio_pl.data.readers.table_files import Row, pieces, rows
from vita_audio_pl.data.readers.templates import check_pattern, columns_in, filled, searched
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceOptions, speaker_of
from vita_audio_pl.errors import UserError, kind_in_words
from vita_audio_pl.storage.places import Place, relative
from vita_audio_pl.text import AUDIO_PLACEHOLDER, Conversation, Message
from vita_audio_pl.text.messages import PICTURES, as_list, parse_messages, plain_text_of, refuse_pictures

_COLUMNS = (
    "id",
    "audio",
    "text",
    "speaker",
    "messages",
    "system",
    "user",
    "assistant",
    "user_audio",
    "assistant_audio",
)
_FOLDER = "folder"
_ROUND = ("user", "assistant")
_PAIR = {"human", "user", "assistant", "gpt", "system"}


@dataclass(frozen=True)
class TableReader(UtteranceOptions):
    """Rows as conversations.

    `columns` maps roles to columns. For recordings with transcripts: `audio`, `text` and optionally `speaker`. For
    chats: `messages`, a list of `{role, content}`, `{from, value}`, `{human, assistant}` or plain texts in turn, and
    `audio`, the audio of their placeholders. For questions and answers: `user` and `assistant` (several columns joined
    with +; lists of as many questions as answers are rounds of one chat), `system`, `user_audio`, `assistant_audio`.
    With `messages` as well, they are used for rows without messages. Audio is a Hugging Face `Audio` feature, a column
    of paths below `root`, or a path with columns in braces, such as `answers/{index}.wav`; `{folder}` is the file's
    folder.

    Attributes:
        root: folder of the corpus.
        columns: name of each column of `_COLUMNS` in this corpus.
        message_audio: key of a message's own recording, as in `{"role": .., "content": .., "wavpath": ..}`; it replaces
            a user's text, and follows an assistant's.
        inside: pattern; the part of a recording's path that it matches is its path below `root`, for corpora with
            absolute paths of another machine.
        numbers: those of them whose numbers are text, too; elsewhere a number is no text.
        task, speaker_prompt, lower, join, channel, filters: see `UtteranceOptions`; for chats and questions only
            `task`, `filters` and a numbered `channel` are looked at.
        files: globs below `root`, of .parquet, .jsonl, .json, .csv or .tsv.
        rows_per_part: rows that one task takes; of parquet, whole row groups of about as many.
    """

    root: Place
    columns: Mapping[str, str] = field(default_factory=dict)
    message_audio: str = ""
    inside: str = ""
    numbers: tuple[str, ...] = ()
    task: str = field(default="text", kw_only=True)
    files: tuple[str, ...] = ("**/*.parquet",)
    rows_per_part: int = 2000

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(_COLUMNS))
        if unknown:
            raise UserError(
                f"a table reader knows no column '{unknown[0]}'; it knows {', '.join(_COLUMNS)}{did_you_mean(unknown[0], _COLUMNS)}"
            )
        if not {"text", "messages", "assistant"} & set(self.columns):
            raise UserError("a table reader needs the column 'text', 'messages' or 'assistant': say what it is called")
        if unknown := sorted(set(self.numbers) - set(self.columns)):
            raise UserError(
                f"'numbers' names '{unknown[0]}', which is not one of the columns {', '.join(self.columns)}{did_you_mean(unknown[0], self.columns)}"
            )
        if self.channel == EACH and "text" not in self.columns:
            raise UserError("channel: each is for recordings with transcripts; give the number of a channel")
        check_pattern(self.inside, "inside")
        for name in self.columns.values():
            columns_in(name)

    def parts(self) -> list[Part]:
        described = json.dumps(
            [dict(self.columns), self.numbers, self.task, self.speaker_prompt, self.lower, self.join, self.channel]
            + [option for option in (self.message_audio, self.inside) if option]
        )
        rules = hashlib.sha256(described.encode()).hexdigest()[:12] + self.filters.identity
        paths, parts = parts_matching(self.root, self.files)
        for path, content in zip(paths, file_identities(paths, self.root), strict=True):
            identity, name, changed = f"{content} {rules}", str(relative(path, self.root)), path.stat().st_mtime_ns
            try:
                for first, place in pieces(path, self.rows_per_part):
                    where = {"path": relative(path, self.root).as_posix(), **place}
                    rows_of = f"{first} {place['count'] if path.suffix == '.parquet' else self.rows_per_part}"
                    part = Part(f"{name}:{first}", f"{identity} {rows_of}", where, changed, f"{content} {rows_of}")
                    parts.append(part)
            except UserError as error:
                parts.append(broken_part(name, identity, error))
        return parts

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        path, wanted = self.root / str(part.where["path"]), self._wanted()
        if "text" not in self.columns:
            wanted += PICTURES
        found = rows(path, dict(part.where), wanted)
        if _FOLDER in wanted:
            folder = {_FOLDER: relative(path.parent, self.root).as_posix()}
            found = ((where, row if isinstance(row, Unreadable) else {**folder, **row}) for where, row in found)
        if "text" in self.columns:
            yield from self._rules.samples(self._made(self._utterance, where, row) for where, row in found)
        else:
            for where, row in found:
                yield self._made(self._chat, where, row)

    def _made(self, make: Any, where: str, row: Row | Unreadable) -> Any:
        return row if isinstance(row, Unreadable) else attempt(where, make, where, row)

    def _wanted(self) -> list[str]:
        """Columns of the files that are looked at."""
        names: dict[str, None] = {}
        for column, name in self.columns.items():
            names |= dict.fromkeys(
                columns_in(name) or (name.split("+") if column in ("user", "assistant", "system") else [name])
            )
        return [name for name in (*names, *self.filters.columns) if name]

    def _utterance(self, where: str, row: Row) -> Utterance:
        name = self._name(row, where)
        audio = self._audio("audio", row, where)
        return Utterance(name, audio, self._text("text", self.columns["text"], row), self._speaker(row), row)

    def _speaker(self, row: Row) -> str:
        return speaker_of(row.get(self.columns["speaker"])) if "speaker" in self.columns else ""

    def _chat(self, where: str, row: Row) -> RawSample:
        refuse_pictures({key: row[key] for key in PICTURES if key in row}, where)
        audios: list[AudioRef] = []
        messages: tuple[Message, ...]
        channel = self.channel if isinstance(self.channel, int) else None
        if "messages" in self.columns and (
            "assistant" not in self.columns or row.get(self.columns["messages"]) is not None
        ):
            listed = self._listed(row)
            chat = _in_pairs(as_list(_cell(row, self.columns["messages"])))
            chat = (
                [self._spoken(message) for message in chat] if self.message_audio and isinstance(chat, list) else chat
            )
            messages, sources = parse_messages(chat, listed, where)
            audios = [
                audio_ref(self._below(source), self.root, f"{where} audio {number}", channel=channel)
                for number, source in enumerate(sources, 1)
            ]
        elif any(isinstance(row.get(name), list) for name in self.columns["assistant"].split("+")):
            messages = self._rounds(row)
        else:
            turns = []
            for role in ("system", "user", "assistant"):
                content = self._joined(role, row)
                if f"{role}_audio" in self.columns:
                    audios.append(self._audio(f"{role}_audio", row, where))
                    content = f"{content}\n{AUDIO_PLACEHOLDER}" if content else AUDIO_PLACEHOLDER
                if content or role != "system":
                    turns.append(Message(role, content))
            messages = tuple(turns)
        conversation = Conversation(self._name(row, where), messages, tuple(map(str, audios)))
        return self.filters.chat(RawSample(conversation, tuple(audios)), row)

    def _listed(self, row: Row) -> list[Any] | None:
        """Audio that is listed beside the messages; None where the corpus has none, so that nothing stands for any."""
        if "audio" not in self.columns:
            return [] if self.message_audio else None
        value = row.get(self.columns["audio"])
        return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]

    def _rounds(self, row: Row) -> tuple[Message, ...]:
        """Questions and answers of columns that hold lists; texts of other columns stand before the first."""
        asked, answered = ([row.get(name) for name in self.columns.get(role, "").split("+")] for role in _ROUND)
        questions, answers = ([cell for cell in cells if isinstance(cell, list)] for cells in (asked, answered))
        if len(questions) != 1 or len(answers) != 1 or len(questions[0]) != len(answers[0]):
            counts = [[len(cell) for cell in cells] for cells in (questions, answers)]
            raise LeftOut(
                NO_SAMPLE, f"it has lists of {counts[0]} questions and {counts[1]} answers, not one of as many"
            )
        before = [plain_text_of(cell, "a column before its questions") for cell in asked if isinstance(cell, str)]
        messages = []
        for number, pair in enumerate(zip(questions[0], answers[0], strict=True)):
            question, answer = (
                plain_text_of(text, f"its {role}'s text {number + 1}") for role, text in zip(_ROUND, pair, strict=True)
            )
            texts = [text.strip() for text in (*(before if number == 0 else ()), question)]
            messages += [
                Message("user", "\n".join(text for text in texts if text)),
                Message("assistant", answer.strip()),
            ]
        return tuple(messages)

    def _spoken(self, message: Any) -> Any:
        """A message with its own recording as a part of its content."""
        if not isinstance(message, Mapping) or message.get(self.message_audio) is None:
            return message
        audio = {"type": "audio", "audio": message[self.message_audio]}
        heard = [audio] if message.get("role") == "user" else [message.get("content"), "\n", audio]
        return {"role": message.get("role"), "content": heard}

    def _below(self, source: Any) -> Any:
        if not self.inside or not isinstance(source, str):
            return source
        found = searched(self.inside, source)
        if found is None:
            raise LeftOut(NO_AUDIO, f"in the path {source!r:.200} nothing is {self.inside!r:.200}")
        return found

    def _joined(self, role: str, row: Row) -> str:
        """The texts of a role's columns, without those that are empty or null."""
        names = [name for name in self.columns.get(role, "").split("+") if name]
        found = ((name, self._text(role, name, row)) for name in names)
        texts = (plain_text_of(text, f"'{name}'").strip() for name, text in found if text is not None)
        return "\n".join(text for text in texts if text)

    def _text(self, column: str, name: str, row: Row) -> Any:
        """What a cell holds, None or text; a number as text where the recipe says that it is."""
        value = _cell(row, name)
        if column in self.numbers and isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise LeftOut(NO_TEXT, f"'{name}' is {value}")
            return str(value)
        return value

    def _name(self, row: Row, where: str) -> str:
        value = _cell(row, self.columns["id"]) if "id" in self.columns else None
        if value is None or value == "":
            return where
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise LeftOut("no name", f"'{self.columns['id']}' is {kind_in_words(value)}, neither a name nor a number")
        return str(value)

    def _audio(self, column: str, row: Row, where: str) -> Recorded:
        name = self.columns[column]
        inside = columns_in(name)
        if inside:
            value: Any = filled(name, {key: _cell(row, key) for key in inside})
        else:
            value = _cell(row, name)
        channel = self.channel if isinstance(self.channel, int) else None
        return audio_ref(value, self.root, f"{where}.{name}", channel=channel)


def _cell(row: Row, name: str) -> Any:
    if name not in row:
        raise LeftOut("no such column", f"it has no column {name!r:.100}, only {', '.join(map(str, row)):.300}")
    return row[name]


def _in_pairs(value: Any) -> Any:
    """A chat of plain texts in turn, or of `{human, assistant}` pairs, as messages; any other as it is."""
    if not isinstance(value, list | tuple):
        return value
    messages: list[Any] = []
    for number, message in enumerate(value):
        if isinstance(message, str):
            messages.append({"role": ("user", "assistant")[number % 2], "content": message})
        elif isinstance(message, Mapping) and message and set(message) <= _PAIR:
            messages += [{"role": role, "content": content} for role, content in message.items()]
        else:
            messages.append(message)
    return messages
