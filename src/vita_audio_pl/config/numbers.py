"""Numbers that a caller gives: whole or finite, or refused in a sentence."""

import math
import operator
import reprlib
from typing import Any

from vita_audio_pl.errors import UserError

_MOST = 2**63 - 1


def whole_number(value: Any, name: str, *, least: int) -> int:
    """`value` as an int, if it is one (numpy's and torch's count, floats and truth values do not).

    Raises:
        UserError: it is none, is below `least`, or does not fit into 64 bits.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, RuntimeError):  # torch raises either
        number = None
    if number is None or not least <= number <= _MOST:
        raise UserError(f"{name}={shown(value)} must be a whole number of at least {least}")
    return number


def finite_number(value: Any, name: str) -> float:
    """`value` as a float, if it is a finite number.

    Raises:
        UserError: it is not.
    """
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name}={shown(value)} must be a finite number")
    return number


def shown(value: Any) -> str:
    """A value for an error message, cut where it is long."""
    return reprlib.repr(value)[:120]
