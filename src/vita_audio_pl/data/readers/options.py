"""Validation of reader options, which come from recipes that may be untrusted."""

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vita_audio_pl.data.readers.base import EACH
from vita_audio_pl.errors import UserError

_LONGEST_TEXT = 500  # characters


def check_options(where: str, reader: type, options: Mapping[str, Any]) -> None:
    """Refuse options of another type than the reader's fields, or out of range.

    Raises:
        UserError: the option and what is allowed.
    """
    types = get_type_hints(reader)
    for name, value in options.items():
        _check(f"{where} has the option '{name}'", name, value, types[name])


def _check(what: str, name: str, value: Any, wanted: Any) -> None:
    if not _fits(value, wanted):
        raise UserError(f"{what}={value!r:.100}; it must be {_described(wanted)}")
    counts = isinstance(value, int) and not isinstance(value, bool) and wanted is not float
    if counts and value < (0 if name == "channel" else 1):
        raise UserError(f"{what}={value}; it must be {0 if name == 'channel' else 1} or more")
    if name == "channel" and isinstance(value, str) and value != EACH:
        raise UserError(f"{what}={value!r:.100}; give a number, or '{EACH}' for a sample of each channel")


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is Any:
        return True
    if get_origin(wanted) is UnionType:
        return any(_fits(value, kind) for kind in get_args(wanted))
    if get_origin(wanted) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(wanted)[0]) for item in value)
    if get_origin(wanted) is Mapping:
        keys, values = get_args(wanted)
        return isinstance(value, Mapping) and all(_fits(k, keys) and _fits(v, values) for k, v in value.items())
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return False
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


def _described(wanted: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: f"text of at most {_LONGEST_TEXT} characters",
        bool: "true or false",
        type(None): "null",
    }
    if get_origin(wanted) is UnionType:
        return " or ".join(map(_described, get_args(wanted)))
    if get_origin(wanted) is tuple:
        return (
            "a list of numbers"
            if float in get_args(wanted)
            else f"a list of texts of at most {_LONGEST_TEXT} characters"
        )
    if get_origin(wanted) is Mapping and get_args(wanted)[1] is not str:
        return f"names with {_described(get_args(wanted)[1])} each"
    return names.get(wanted, "names and what they stand for")
