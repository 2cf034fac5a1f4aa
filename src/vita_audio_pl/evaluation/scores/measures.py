"""Metrics of one utterance and of a set: word or character errors (jiwer), exact match, containment."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer


@dataclass(frozen=True)
class ErrorCounts:
    """Edit operations between one reference and one hypothesis, in units (words or characters)."""

    substitutions: int
    deletions: int
    insertions: int
    reference_units: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors divided by reference units; can exceed 1 with many insertions."""
        return self.errors / self.reference_units


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    """Align two unit sequences with the fewest edits.

    Raises:
        ValueError: the reference has no units (callers refuse such utterances when they read them).
    """
    if not reference:
        raise ValueError("the reference is empty")
    out = jiwer.process_words([" ".join(reference)], [" ".join(hypothesis)])
    return ErrorCounts(out.substitutions, out.deletions, out.insertions, len(reference))


def exact_match(references: Sequence[Sequence[str]], hypothesis: Sequence[str]) -> bool:
    """Whether the hypothesis equals one of the accepted answers, unit by unit."""
    return any(list(reference) == list(hypothesis) for reference in references)


def contains_answer(references: Sequence[Sequence[str]], hypothesis: Sequence[str]) -> bool:
    """Whether one of the accepted answers occurs as whole, consecutive units: "nine" is not in "nineteen"."""
    said = list(hypothesis)
    return any(
        len(answer) > 0 and any(said[i : i + len(answer)] == list(answer) for i in range(len(said) - len(answer) + 1))
        for answer in references
    )


def contains_substring(references: Sequence[Sequence[str]], hypothesis: Sequence[str]) -> bool:
    """Whether one of the accepted answers occurs as a substring, even inside a word: "nine" is in "nineteen"."""
    said = " ".join(hypothesis)
    return any(len(answer) > 0 and " ".join(answer) in said for answer in references)
