"""How a token is drawn from logits: greedy, or by temperature, top-k, top-p and repetition penalty, with a seed."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.checks import finite_number, whole_number


@dataclass(frozen=True)
class Sampling:
    """Settings of one session; the default is greedy.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities reach this sum.
        repetition_penalty: logits of tokens seen before (prompt included) are divided by it where positive and
            multiplied where negative (arXiv 1909.05858).
        seed: of this session's draws; they depend on nothing that is decoded beside it.

    Raises:
        UserError: a value of another type or out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty"):
            object.__setattr__(self, name, finite_number(getattr(self, name), name))
        for name in ("top_k", "seed"):
            object.__setattr__(self, name, whole_number(getattr(self, name), name, least=0))
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature} must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not self.repetition_penalty > 0:
            raise UserError(f"repetition_penalty={self.repetition_penalty} must be above 0; 1 means none")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    @property
    def plain_argmax(self) -> bool:
        """Whether the choice is the largest logit, with nothing done to it."""
        return self.greedy and self.repetition_penalty == 1


Greedy = Sampling()
"""The most likely token each time."""


class Sampler:
    """Draws tokens for one session, with its own random numbers."""

    def __init__(self, settings: Sampling):
        self.settings = settings
        self._random = torch.Generator().manual_seed(settings.seed)

    def probabilities(self, logits: Tensor, seen: Collection[int]) -> Tensor:
        """Distribution `(choices,)` float32 that the settings make of `logits: (choices,)`.

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
            # summed from the least likely up, as transformers does, so that borders fall on the same token
            ordered, order = logits.sort()
            dropped = order[:-1][ordered.softmax(-1).cumsum(-1)[:-1] <= 1 - settings.top_p]
            logits = logits.index_fill(0, dropped, float("-inf"))
        return logits.softmax(-1)

    def draw(self, probabilities: Tensor) -> int:
        """A column drawn from `probabilities: (choices,)`, which need not sum to 1."""
        if self.settings.greedy:
            return int(probabilities.argmax())
        summed = probabilities.double().cumsum(0)
        point = self.uniform() * float(summed[-1])
        # the first column whose sum lies beyond the point, so a column of probability 0 is never drawn
        column = int(torch.searchsorted(summed, point, right=True))
        return min(column, int(probabilities.nonzero()[-1]))

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return float(torch.rand((), dtype=torch.float64, generator=self._random))
