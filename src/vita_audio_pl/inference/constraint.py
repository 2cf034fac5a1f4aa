"""What may be written inside an audio span: codes, the end marker and the end of the turn, nothing else."""

from dataclasses import dataclass
from functools import cached_property

from vita_audio_pl.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class SpanConstraint:
    """Restricts choices by state, inside or outside a span, never by position; outside everything is allowed.

    Inside a span only the allowed rows of the vocabulary matrix are computed. Text answers never open a span and are
    never restricted.
    """

    begin: int
    end: int
    turn_end: int
    first_code: int
    n_codes: int

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
