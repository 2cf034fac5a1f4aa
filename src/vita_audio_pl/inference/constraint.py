"""What may be written inside an audio span: codes, the end marker and the end of the turn, nothing else."""

from dataclasses import dataclass
from functools import cached_property

from vita_audio_pl.config.numbers import whole_number
from vita_audio_pl.errors import UserError
from vita_audio_pl.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class SpanConstraint:
    """Restricts choices by state, inside or outside a span, never by position; outside everything is allowed.

    Inside a span only the allowed rows of the vocabulary matrix are computed. Text answers never open a span and are
    never restricted.

    Raises:
        UserError: an id is no whole number of 0 or more, there are no codes, or a marker lies among the codes.
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
        """The largest id that it names."""
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
        """Place of each allowed id in `allowed`."""
        return {token: column for column, token in enumerate(self.allowed)}

    def after(self, inside: bool, token: int) -> bool:
        """Whether the text after `token` is inside a span, when before it `inside` held."""
        if token == self.begin:
            return True
        return inside and token not in (self.end, self.turn_end)
