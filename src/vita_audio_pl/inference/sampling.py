"""Sampling a token from logits: greedy, or with temperature, top-k, top-p and repetition penalty, from a seed."""

from collections.abc import Collection

import torch
from torch import Tensor

from vita_audio_pl.config.decoding import Sampling


class Sampler:
    """Samples tokens for one session, with its own random number generator."""

    def __init__(self, settings: Sampling):
        self.settings = settings
        self._random = torch.Generator().manual_seed(settings.seed)

    def probabilities(self, logits: Tensor, seen: Collection[int]) -> Tensor:
        """Distribution `(choices,)` float32 after temperature, penalty, top-k and top-p, from `logits: (choices,)`.

        seen: columns of `logits` whose tokens occurred before.
        """
        logits = logits.float()
        settings = self.settings
        if settings.repetition_penalty != 1 and seen:
            columns = torch.tensor(sorted(seen), device=logits.device)
            values = logits[columns]
            penalty = settings.repetition_penalty
            logits = logits.index_copy(0, columns, torch.where(values > 0, values / penalty, values * penalty))
        if settings.greedy:
            return torch.zeros_like(logits).index_fill_(0, logits.argmax()[None], 1.0)
        logits = logits / settings.temperature
        if 0 < settings.top_k < logits.shape[0]:
            smallest = logits.topk(settings.top_k).values[-1]
            logits = logits.masked_fill(logits < smallest, float("-inf"))
        if settings.top_p < 1:
            # cumulated from the least likely upwards, as in transformers, so that the cut-off falls on the same token
            ordered, order = logits.sort()
            dropped = order[:-1][ordered.softmax(-1).cumsum(-1)[:-1] <= 1 - settings.top_p]
            logits = logits.index_fill(0, dropped, float("-inf"))
        return logits.softmax(-1)

    def draw(self, probabilities: Tensor) -> int:
        """A column sampled from `probabilities: (choices,)`, which need not sum to 1."""
        if self.settings.greedy:
            return int(probabilities.argmax())
        summed = probabilities.double().cumsum(0)
        point = self.uniform() * float(summed[-1])
        # the first column whose cumulative sum exceeds the point, so a column of probability 0 is never drawn
        column = int(torch.searchsorted(summed, point, right=True))
        return min(column, int(probabilities.nonzero()[-1]))

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return float(torch.rand((), dtype=torch.float64, generator=self._random))
