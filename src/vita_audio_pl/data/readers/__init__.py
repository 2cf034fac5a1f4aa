"""Readers of corpora: one per storage format, each yielding conversations."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vita_audio_pl.config.fields import did_you_mean
from vita_audio_pl.config.plugins import load_inherited_plugins
from vita_audio_pl.data.readers.archived import ArchivesReader
from vita_audio_pl.data.readers.base import (
    AnyAudio,
    AudioBytes,
    AudioFile,
    AudioRef,
    KnownCodes,
    LeftOut,
    Part,
    RawSample,
    Reader,
    ToSpeak,
    Unreadable,
    attempt,
    read_part,
    unreadable,
)
from vita_audio_pl.data.readers.filters import NONE, Filters
from vita_audio_pl.data.readers.jsonl import JsonlReader
from vita_audio_pl.data.readers.kaldi import KaldiReader
from vita_audio_pl.data.readers.lhotse import LhotseReader
from vita_audio_pl.data.readers.lines import LinesReader
from vita_audio_pl.data.readers.options import check_options
from vita_audio_pl.data.readers.recordings import RecordingsReader, TextGridReader
from vita_audio_pl.data.readers.speech import SPEECH, SpeechReader, Transcriber
from vita_audio_pl.data.readers.tables import TableReader
from vita_audio_pl.data.readers.webdataset import WebDatasetReader
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place

__all__ = [
    "AnyAudio",
    "AudioBytes",
    "AudioFile",
    "AudioRef",
    "KnownCodes",
    "LeftOut",
    "Part",
    "RawSample",
    "Reader",
    "ToSpeak",
    "Transcriber",
    "Unreadable",
    "attempt",
    "make_reader",
    "read_part",
    "register_reader",
    "unreadable",
]

_KINDS: dict[str, Any] = {
    "jsonl": JsonlReader,
    "kaldi": KaldiReader,
    "lhotse": LhotseReader,
    "lines": LinesReader,
    "recordings": RecordingsReader,
    SPEECH: SpeechReader,
    "table": TableReader,
    "textgrid": TextGridReader,
    "webdataset": WebDatasetReader,
    "archives": ArchivesReader,
}
_OURS = frozenset(_KINDS)
_DESCRIBED = {"root", "task", "filters", "transcriber"}  # passed to a reader, never among the options of a recipe


def register_reader(kind: str, reader: Any) -> None:
    """Register `kind` as a reader for recipes: a dataclass with the field `root`, its options, and `Reader`'s methods.

    Raises:
        ValueError: another reader has that name.
    """
    if _KINDS.get(kind, reader) is not reader:
        raise ValueError(f"a reader named '{kind}' is registered already")
    _KINDS[kind] = reader


def make_reader(
    root: Place,
    task: str,
    options: Mapping[str, Any],
    where: str,
    filters: Filters = NONE,
    transcriber: Transcriber | None = None,
) -> Reader:
    """The reader `options["kind"]` for the corpus in `root`; `task` and `transcriber` go to readers that take them.

    Raises:
        UserError: there is no such kind, it has no such option, or an option is of the wrong type or out of range.
    """
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    kind = settings.pop("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        load_inherited_plugins()
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(
            f"{where} asks for the reader '{kind!s:.100}'{did_you_mean(str(kind)[:100], _KINDS)}; there are {', '.join(_KINDS)}; "
            "plugins=[PACKAGE] registers yours"
        )
    known = {field.name: field for field in fields(_KINDS[kind])}
    unknown = sorted(map(str, set(settings) - set(known) | set(settings) & _DESCRIBED))
    if unknown:
        told = [name for name in known if name not in _DESCRIBED]
        near = did_you_mean(unknown[0][:100], told)
        raise UserError(
            f"{where}: the reader '{kind}' has no option '{unknown[0]:.100}'; it has {', '.join(told)}{near}"
        )
    if kind in _OURS:
        check_options(f"{where}: the reader '{kind}'", _KINDS[kind], settings)
    if filters != NONE:
        if "filters" not in known:
            raise UserError(f"{where}: the reader '{kind}' takes no filters")
        settings["filters"] = filters
    if "task" in known:
        settings["task"] = task
    if "transcriber" in known:
        settings["transcriber"] = transcriber
    try:
        reader: Reader = _KINDS[kind](root=root, **settings)
    except TypeError as error:
        raise UserError(f"{where}: the reader '{kind}' lacks an option ({error})") from error
    return reader
