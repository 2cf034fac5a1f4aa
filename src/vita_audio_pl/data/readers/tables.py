"""Tables as Hugging Face data sets come: folders of parquet, JSONL or JSON files whose columns the recipe names."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vita_audio_pl.data.readers.base import (
    AudioBytes,
    AudioFile,
    AudioRef,
    Part,
    RawSample,
    Unreadable,
    file_identities,
    files_matching,
)
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceRules
from vita_audio_pl.errors import UserError
from vita_audio_pl.text import AUDIO_PLACEHOLDER, Conversation, Message

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
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


@dataclass(frozen=True)
class TableReader:
    """Rows as conversations.

    `columns` says what is where. For recordings with transcripts: `audio`, `text` and, if there is one, `speaker`. For
    chats: `messages`, a list of `{role, content}`, `{from, value}`, `{human, assistant}` or plain texts in turn. For questions and answers: `user` and `assistant`
    (several columns joined with +), `system`, `user_audio`, `assistant_audio`. Audio is a column of a Hugging Face
    `Audio` feature, a column of paths below `root`, or a path with columns in braces, such as `answers/{index}.wav`.

    Attributes:
        root: the corpus.
        columns: what each column of `_COLUMNS` is called here.
        task, speaker_prompt, lower, join: see `UtteranceRules`; for chats and questions only `task` is looked at.
        files: globs below `root`, of .parquet, .jsonl or .json.
        rows_per_part: rows that one task takes.
    """

    root: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    task: str = "text"
    files: tuple[str, ...] = ("**/*.parquet",)
    speaker_prompt: bool = False
    lower: bool = False
    join: bool = False
    rows_per_part: int = 2000

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(_COLUMNS))
        if unknown:
            raise UserError(f"a table reader knows no column '{unknown[0]}'; it knows {', '.join(_COLUMNS)}")
        if not {"text", "messages", "assistant"} & set(self.columns):
            raise UserError("a table reader needs the column 'text', 'messages' or 'assistant': say what it is called")

    def parts(self) -> list[Part]:
        described = json.dumps([dict(self.columns), self.task, self.speaker_prompt, self.lower, self.join])
        rules = hashlib.sha256(described.encode()).hexdigest()[:12]
        parts = []
        paths = files_matching(self.root, self.files)
        for path, content in zip(paths, file_identities(paths, self.root), strict=True):
            identity, name, changed = f"{content} {rules}", str(path.relative_to(self.root)), path.stat().st_mtime_ns
            for first in range(0, max(_count(path), 1), self.rows_per_part):
                where: dict[str, str | int] = {"path": str(path), "first": first}
                parts.append(Part(f"{name}:{first}", f"{identity} {first} {self.rows_per_part}", where, changed))
        return parts

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        path, first = Path(str(part.where["path"])), int(part.where["first"])
        rows = _rows(path, first, self.rows_per_part)
        if "text" in self.columns:
            rules = UtteranceRules(self.task, self.speaker_prompt, self.lower, self.join)
            yield from rules.samples(self._utterance(where, row) for where, row in rows)
            return
        for where, row in rows:
            if isinstance(row, Unreadable):
                yield row
                continue
            try:
                yield self._chat(where, row)
            except (UserError, KeyError, TypeError, ValueError) as error:
                yield Unreadable(where, f"{where}: {error if isinstance(error, UserError) else repr(error)}")

    def _utterance(self, where: str, row: "dict[str, Any] | Unreadable") -> Utterance | Unreadable:
        if isinstance(row, Unreadable):
            return row
        try:
            audio = self._audio("audio", row, where)
            speaker = str(row.get(self.columns.get("speaker", ""), "") or "")
            return Utterance(self._name(row, where), audio, str(row[self.columns["text"]] or ""), speaker)
        except (UserError, KeyError, TypeError) as error:
            return Unreadable(where, f"{where}: {error if isinstance(error, UserError) else repr(error)}")

    def _chat(self, where: str, row: dict[str, Any]) -> RawSample:
        audios: list[AudioRef] = []
        if "messages" in self.columns:
            messages = _messages(row[self.columns["messages"]])
        else:
            messages = []
            for role in ("system", "user", "assistant"):
                content = self._joined(role, row)
                if f"{role}_audio" in self.columns:
                    audios.append(self._audio(f"{role}_audio", row, where))
                    content = f"{content}\n{AUDIO_PLACEHOLDER}" if content else AUDIO_PLACEHOLDER
                if content or role != "system":
                    messages.append(Message(role, content))
        conversation = Conversation(self._name(row, where), tuple(messages), tuple(map(str, audios)))
        return RawSample(conversation, tuple(audios))

    def _joined(self, role: str, row: Mapping[str, Any]) -> str:
        columns = [name for name in self.columns.get(role, "").split("+") if name]
        texts = (str(row[name] or "").replace(AUDIO_PLACEHOLDER, "").strip() for name in columns)
        return "\n".join(text for text in texts if text)

    def _name(self, row: Mapping[str, Any], where: str) -> str:
        return str(row[self.columns["id"]]) if "id" in self.columns else where

    def _audio(self, column: str, row: Mapping[str, Any], where: str) -> AudioRef:
        name = self.columns[column]
        value = name.format_map(row) if "{" in name else row[name]
        if isinstance(value, Mapping):
            if value.get("bytes"):
                return AudioBytes(f"{where}.{name}", value["bytes"])
            value = value.get("path")
        if not isinstance(value, str) or not value:
            raise UserError(f"'{name}' holds no audio")
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"'{name}' is the path {value!r}, which leads out of the corpus")
        return AudioFile(self.root / path)


def _messages(value: Sequence[Any]) -> list[Message]:
    """Messages of a chat: `{role, content}`, `{from, value}`, `{human, assistant}` pairs, or plain texts in turn."""
    messages: list[tuple[str, Any]] = []
    for number, message in enumerate(value):
        if isinstance(message, str):
            messages.append((("user", "assistant")[number % 2], message))
        elif set(message) <= set(_ROLES):
            messages += message.items()
        else:
            content = message.get("content") if message.get("content") is not None else message.get("value")
            messages.append((str(message.get("role") or message.get("from")), content))
    unknown = next((role for role, _ in messages if role not in _ROLES), None)
    if unknown is not None:
        raise UserError(f"a message has the role {unknown!r}; known are {', '.join(_ROLES)}")
    return [Message(_ROLES[role], str(content or "").replace(AUDIO_PLACEHOLDER, "")) for role, content in messages]


def _count(path: Path) -> int:
    if path.suffix == ".parquet":
        return int(_parquet().ParquetFile(path).metadata.num_rows)
    if path.suffix == ".json":
        return len(_json_rows(path))
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def _rows(path: Path, first: int, count: int) -> Iterator[tuple[str, "dict[str, Any] | Unreadable"]]:
    """Rows `first` to `first + count` of a file, each with its place for messages."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, first, count)
        return
    if path.suffix == ".json":
        rows = _json_rows(path)[first : first + count]
        yield from ((f"{path}:{n}", row) for n, row in enumerate(rows, first + 1))
        return
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number >= first + count:
                return
            if number >= first and line.strip():
                where = f"{path}:{number + 1}"
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                except ValueError as error:
                    row = Unreadable(where, f"{where}: not a JSON object ({error})")
                yield where, row


def _json_rows(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of rows; give .jsonl files for one row a line")
    return rows


def _parquet_rows(path: Path, first: int, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    file = _parquet().ParquetFile(path)
    start = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if start < first + count and start + size > first:
            begin, end = max(first - start, 0), min(first + count - start, size)
            number = start
            for batch in file.iter_batches(batch_size=64, row_groups=[group]):
                for row in batch.to_pylist():
                    if begin <= number - start < end:
                        yield f"{path}:{number}", row
                    number += 1
        start += size


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("reading parquet files needs pyarrow: pip install 'vita-audio-pl[corpora]'") from error
    return parquet
