"""Validation of what is asked of a model, before it joins other requests in a shared decoder."""

import operator
from collections.abc import Sequence
from typing import Any

from vita_audio_pl.config.numbers import shown
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern


def refuse_without_heads(n_heads: int, mode: str | Sequence[int] | None, verify: str | None = None) -> None:
    """Refuse a mode, or verification, that was asked for by name and can only be Vanilla, since the model has no heads.

    Args:
        n_heads: of the model.
        mode: None if none was asked for; likewise `verify`, which `none` is, too.

    Raises:
        UserError: names what was asked for.
    """
    asked = [f"mode={mode}"] if mode is not None and DecodePattern.of(mode).uses_heads else []
    asked += [f"verify={verify}"] if verify not in (None, "none") else []
    if asked and not n_heads:
        raise UserError(
            f"{' and '.join(asked)}: heads draft there, and this model has none, so it would answer as in Vanilla; choose "
            "mode=vanilla without verify, or a model with heads"
        )


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
