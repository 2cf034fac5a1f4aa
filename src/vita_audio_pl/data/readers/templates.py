"""Names of files made of columns, and lines taken apart by patterns: what a recipe says of a publisher's layout."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from string import Formatter
from typing import Any

import regex

from vita_audio_pl.data.readers.base import NO_AUDIO, LeftOut
from vita_audio_pl.data.readers.filters import SLOWEST_MATCH
from vita_audio_pl.errors import UserError, shown


def columns_in(template: str) -> list[str]:
    """Names in braces, as in `answers/{index}.wav` or `{index:05d}.wav`.

    Raises:
        UserError: there is something else in them: a recipe may be a stranger's, and formats can do a lot.
    """
    try:
        inside = [
            (key, spec, conversion) for _, key, spec, conversion in Formatter().parse(template) if key is not None
        ]
    except ValueError as error:
        raise UserError(f"the column {template!r:.200} cannot be read: {error}") from None
    for key, spec, conversion in inside:
        if conversion or not re.fullmatch(r"\w+", key) or not re.fullmatch(r"(0?\d{1,2})?d?", spec or ""):
            raise UserError(
                f"the column {template!r:.200}: braces hold the name of a column, such as {{index}} or {{index:05d}}"
            )
    return [key for key, _, _ in inside]


def filled(template: str, values: Mapping[str, Any]) -> str:
    """The template with columns in the place of their names.

    Raises:
        LeftOut: one of them is neither text nor a whole number.
    """
    for key in columns_in(template):
        if not isinstance(values[key], str | int):
            raise LeftOut(NO_AUDIO, f"'{key}' is not a part of a file's name: {shown(values[key])}")
    return template.format_map(values)


PLACES = ("list", "folder", "parent")


def places_of(file: PurePosixPath) -> dict[str, str]:
    """What a template may say of a file of a corpus: its name without extension, its folder below `root`, and that one's."""
    return dict(zip(PLACES, (file.stem, str(file.parent), str(file.parent.parent)), strict=True))


def check_pattern(pattern: str, what: str) -> set[str]:
    """Names of the groups of a regular expression.

    Raises:
        UserError: it is none.
    """
    try:
        return set(regex.compile(pattern).groupindex)
    except regex.error as error:
        raise UserError(f"'{what}': {pattern!r:.200} is not a regular expression ({error})") from None


def searched(pattern: str, text: str) -> str | None:
    """What a pattern finds first in the text; None where it finds nothing.

    Raises:
        LeftOut: the pattern takes too long.
    """
    found = _timed(pattern, regex.compile(pattern).search, text)
    return None if found is None else str(found[0])


def groups_of(pattern: str, text: str, whole: bool = True) -> dict[str, str] | None:
    """Named groups of a pattern in the whole text, or at its beginning; None where it is not there.

    Raises:
        LeftOut: the pattern takes too long.
    """
    compiled = regex.compile(pattern)
    found = _timed(pattern, compiled.fullmatch if whole else compiled.match, text)
    return None if found is None else {name: value or "" for name, value in found.groupdict().items()}


def _timed(pattern: str, match: Any, text: str) -> Any:
    try:
        return match(text, timeout=SLOWEST_MATCH)
    except TimeoutError:
        raise LeftOut("pattern too slow", f"the pattern {pattern!r:.200} takes over {SLOWEST_MATCH:g} s") from None
