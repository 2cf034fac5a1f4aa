"""Miniatures: corpora of a few made-up recordings, laid out as their publishers ship them; each with what it must become."""

from miniatures import chinese, english, spoken, text  # noqa: F401  register their miniatures
from miniatures.base import MINIATURES, Expected, Miniature

__all__ = ["MINIATURES", "Expected", "Miniature"]
