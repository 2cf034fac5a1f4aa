"""Validation of requests before they join others in a shared decoder."""

import operator
from typing import Any

from vita_audio_pl.config.numbers import shown
from vita_audio_pl.errors import UserError


def token_ids(values: Any, name: str, vocabulary: int) -> list[int]:
    """`values` as a list of token ids.

    Raises:
        UserError: it is no sequence of whole numbers from 0 to `vocabulary - 1`.
    """
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise UserError(f"{name} is {shown(values)}; it must be a list of token ids")
    values = list(values)
    try:
        if any(getattr(value, "ndim", 0) for value in values):  # a one-element tensor would pass as a number
            raise TypeError
        ids = [operator.index(value) for value in values]
    except (TypeError, RuntimeError):
        raise UserError(f"{name} holds something that is not a token id; it must be a list of whole numbers") from None
    if ids and (min(ids) < 0 or max(ids) >= vocabulary):
        raise UserError(
            f"{name} has tokens from {min(ids)} to {max(ids)}, but the model's vocabulary has {vocabulary}; it was "
            "written with another tokenizer"
        )
    return ids
