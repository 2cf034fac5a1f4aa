"""Restricts tokens inside an audio span to codes, the end marker and the end of the turn."""

from dataclasses import dataclass
from functools import cached_property

from vita_audio_pl.config.numbers import whole_number
from vita_audio_pl.errors import UserError
from vita_audio_pl.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class SpanConstraint:
    """A restriction by state, inside or outside a span, not by position; outside everything is allowed.

    Inside a span only the allowed rows of the vocabulary matrix are computed. Text answers never open a span, so they
    are not restricted.

    Raises:
        UserError: an id is not a non-negative integer, there are no codes, or a marker is among the codes.
    """

    begin: int
    end: int
    turn_end: int
    first_code: int
    n_codes: int

    def __post_init__(self) -> None:
        for name in ("begin", "end", "turn_end", "first_code"):
            object.__setattr__(self, name, whole_number(getattr(self, name), f"constraint.{name}", least=0))
        object.__setattr__(self, "n_codes", whole_number(self.n_codes, "constraint.n_codes", least=1))
        codes = range(self.first_code, self.first_code + self.n_codes)
        if self.begin in codes or self.end in codes or self.turn_end in codes:
            raise UserError(
                f"the constraint's codes {codes.start} to {codes.stop - 1} contain one of its markers ({self.begin}, "
                f"{self.end}, {self.turn_end}); take them from the model's vocabulary (SpanConstraint.of)"
            )

    @property
    def largest(self) -> int:
        """The largest id in it."""
        return max(self.begin, self.end, self.turn_end, self.first_code + self.n_codes - 1)

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "SpanConstraint":
        """The constraint for a vocabulary's audio tokens."""
        return cls(
            vocabulary.begin_of_audio,
            vocabulary.end_of_audio,
            vocabulary.im_end,
            vocabulary.first_code,
            vocabulary.n_codes,
        )

    @cached_property
    def allowed(self) -> tuple[int, ...]:
        """Ids allowed inside a span: the codes in order, the end marker, the end of the turn."""
        return (*range(self.first_code, self.first_code + self.n_codes), self.end, self.turn_end)

    @cached_property
    def columns(self) -> dict[int, int]:
        """Index of each allowed id in `allowed`."""
        return {token: column for column, token in enumerate(self.allowed)}

    def after(self, inside: bool, token: int) -> bool:
        """Whether the state after `token` is inside a span; inside: the state before it."""
        if token == self.begin:
            return True
        return inside and token not in (self.end, self.turn_end)
