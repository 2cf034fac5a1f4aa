"""From hidden states to tokens, over the whole vocabulary or the rows that an audio span allows."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor

from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.inference.screening import NOT_FINITE, Largest
from vita_audio_pl.inference.sequence import DecodedSequence


@dataclass(frozen=True)
class VocabularySlice:
    """Some rows of the vocabulary matrix; `ids` are their tokens (None: all rows, row = token).

    Attributes:
        logits: all logits; largest: column of the largest one, which is faster to find.
    """

    logits: Callable[[Tensor], Tensor]
    largest: Largest
    ids: tuple[int, ...] | None
    columns: dict[int, int] | None

    def token(self, column: int) -> int:
        """The token of a column."""
        return column if self.ids is None else self.ids[column]

    def column(self, token: int) -> int:
        """The column of a token of this slice."""
        return token if self.columns is None else self.columns[token]

    def seen(self, tokens: Collection[int]) -> set[int]:
        """Columns of those `tokens` that are in this slice."""
        if self.columns is None:
            return set(tokens)
        return {self.columns[token] for token in tokens if token in self.columns}


class Scorer:
    """Chooses tokens from hidden states; holds the vocabulary slices of the constraints."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self._whole = VocabularySlice(runtime.logits, runtime.largest, None, None)
        self._slices: dict[SpanConstraint, VocabularySlice] = {}

    def slice_for(self, restriction: SpanConstraint | None) -> VocabularySlice:
        """The rows of the vocabulary that `restriction` allows."""
        if restriction is None:
            return self._whole
        if restriction not in self._slices:
            logits, largest = self._runtime.vocabulary_slice(restriction.allowed)
            self._slices[restriction] = VocabularySlice(logits, largest, restriction.allowed, restriction.columns)
        return self._slices[restriction]

    def most_likely(
        self, hidden: Tensor, restrictions: list[SpanConstraint | None], entropies: list[float | None] | None = None
    ) -> list[int]:
        """The token with the largest logit for each row of `hidden: (rows, hidden_size)`; `NOT_FINITE` for NaN rows.

        Args:
            restrictions: one per row; rows with the same one are computed together.
            entropies: receives each row's entropy, in nats, if it is known without further products.
        """
        tokens = [NOT_FINITE] * len(restrictions)
        if entropies is not None:
            entropies[:] = [None] * len(restrictions)
        grouped: dict[SpanConstraint | None, list[int]] = {}
        for row, restriction in enumerate(restrictions):
            grouped.setdefault(restriction, []).append(row)
        for restriction, rows in grouped.items():
            chosen = hidden if len(rows) == len(restrictions) else hidden[rows]
            allowed = self.slice_for(restriction)
            if entropies is None:
                columns = allowed.largest(chosen)
            else:
                columns, found = allowed.largest.with_entropies(chosen)
                for row, entropy in zip(rows, found, strict=True):
                    entropies[row] = entropy
            for row, column in zip(rows, columns, strict=True):
                tokens[row] = column if column == NOT_FINITE else allowed.token(column)
        return tokens

    def distribution(self, hidden: Tensor, sequence: DecodedSequence, position: int) -> tuple[VocabularySlice, Tensor]:
        """The session's sampling distribution `(choices,)` of the token after `position`.

        hidden: `(hidden_size,)` of that position, from whichever predictor writes the token.
        """
        allowed = self.slice_for(sequence.restriction(position))
        seen: Collection[int] = ()
        if sequence.options.sampling.repetition_penalty != 1:
            seen = allowed.seen(set(sequence.ids[: position + 1]))
        return allowed, sequence.sampler.probabilities(allowed.logits(hidden[None])[0], seen)
