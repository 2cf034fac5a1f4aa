"""`~` at the beginning of a setting: a person's home, as the shell would have written it out."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

from vita_audio_pl.errors import UserError

FREE_TEXT = ("text", "question", "title")
"""Settings that are read or spoken, and may begin with anything."""


def home_written_out(value: str, setting: str = "a path") -> str:
    """`value` with `~`, `~/` or `~name/` at its beginning written out.

    Raises:
        UserError: there is no such home.
    """
    if not re.match(r"~([\w.-]*/|$)", value):
        return value
    written_out = os.path.expanduser(value)
    if written_out.startswith("~"):
        raise UserError(f"{setting} is '{value}', and there is no such home directory: write the folder out, from / on")
    return written_out


def arguments_with_homes(arguments: Sequence[str]) -> list[str]:
    """A command line with `~` written out where a value begins with it: the shell does so at the start of words alone.

    Raises:
        UserError: there is no such home.
    """
    pieces = (re.fullmatch(r"([+\w.@/-]+)=(~.*)", argument) for argument in arguments)
    return [
        f"{piece[1]}={home_written_out(piece[2], piece[1])}" if piece and piece[1] not in FREE_TEXT else argument
        for piece, argument in zip(pieces, arguments, strict=True)
    ]


def write_out_homes(settings: Any, path: str = "") -> None:
    """Writes out `~` in all settings of a dataclass, in place.

    Raises:
        UserError: there is no such home.
    """
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{path}{field.name}"
        if field.name not in FREE_TEXT and value != field.default:  # a default is looked at where it is used
            setattr(settings, field.name, _written_out(value, name))


def _written_out(value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(value):
        write_out_homes(value, f"{name}.")
    if isinstance(value, str):
        return home_written_out(value, name)
    if isinstance(value, list):
        return [_written_out(item, name) for item in value]
    if isinstance(value, dict):
        return {key: _written_out(item, f"{name}.{key}") for key, item in value.items()}
    return value
