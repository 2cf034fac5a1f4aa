"""Checks of what a request brings, made before it joins others in a shared decoder."""

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
        raise UserError(f"{name}={_shown(value)} must be a whole number of at least {least}")
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
        raise UserError(f"{name}={_shown(value)} must be a finite number")
    return number


def token_ids(values: Any, name: str, vocabulary: int) -> list[int]:
    """`values` as a list of token ids.

    Raises:
        UserError: it is no sequence of whole numbers from 0 to `vocabulary - 1`.
    """
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise UserError(f"{name} is {_shown(values)}; it must be a list of token ids")
    try:
        ids = [operator.index(value) for value in values]
    except (TypeError, RuntimeError):
        raise UserError(f"{name} holds something that is no token id; it must be a list of whole numbers") from None
    if ids and (min(ids) < 0 or max(ids) >= vocabulary):
        raise UserError(
            f"{name} has tokens from {min(ids)} to {max(ids)}, but the model's vocabulary has {vocabulary}; it was "
            "written with another tokenizer"
        )
    return ids


def _shown(value: Any) -> str:
    return reprlib.repr(value)[:120]
