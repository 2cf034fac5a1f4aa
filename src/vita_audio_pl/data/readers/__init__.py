"""Corpora as conversations: one reader per way of storing them."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vita_audio_pl.data.readers.base import AudioBytes, AudioFile, AudioRef, Part, RawSample, Reader, Unreadable
from vita_audio_pl.data.readers.jsonl import JsonlReader
from vita_audio_pl.errors import UserError

__all__ = ["AudioBytes", "AudioFile", "AudioRef", "Part", "RawSample", "Reader", "Unreadable", "make_reader"]

_KINDS: dict[str, Any] = {"jsonl": JsonlReader}


def make_reader(root: Path, options: Mapping[str, Any], where: str) -> Reader:
    """The reader that `options["kind"]` names, over the corpus in `root`.

    Raises:
        UserError: there is no such kind, or it has no such option.
    """
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    kind = settings.pop("kind")
    if kind not in _KINDS:
        raise UserError(f"{where} asks for the reader '{kind}'; there are {', '.join(_KINDS)}")
    known = [field.name for field in fields(_KINDS[kind]) if field.name != "root"]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise UserError(f"{where}: the reader '{kind}' has no option '{unknown[0]}'; it has {', '.join(known)}")
    reader: Reader = _KINDS[kind](root=root, **settings)
    return reader
