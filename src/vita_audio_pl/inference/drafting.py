"""How many tokens the heads draft before the backbone verifies them: as many as pay off, or none.

A draft costs a head pass and a row of the next backbone pass, and saves a backbone pass if it is accepted. Costs are
measured on the machine; the acceptance rate is estimated from this answer so far, per head and per confidence
of the head (its entropy, as in AdaEDL, arXiv 2410.18351). How far to draft never depends on a drafted token
itself, so sampled verification keeps its distribution.

The possible loss against Vanilla is bounded, whatever the heads are: beyond a small credit, drafts must be paid for by
the savings of earlier ones.
"""

import math
from dataclasses import dataclass

FIRST_CREDIT = 1.5
CREDIT_PER_TOKEN = 0.01
"""The most that drafting may cost in total, in backbone passes over one token; the second per token written."""
PRIOR = 0.8
"""Prior acceptance rate of a first draft; each further head is assumed to be as good as the one before it."""
PRIOR_WEIGHT = 1.0
"""Number of drafts that a prior counts as."""
MEMORY = 0.95
"""Decay of the statistics per round, so that a change of voice or language is noticed."""
ENTROPIES = (0.05, 0.3, 1.0, 2.5)
"""Boundaries, in nats, between the classes of a head's entropy."""


@dataclass(frozen=True)
class PassCosts:
    """Time (any unit) of passes over one row and of each additional row, vocabulary included.

    Attributes:
        backbone, backbone_row: of a backbone pass.
        head, head_row: of a head pass; additional rows need no vocabulary product.
    """

    backbone: float
    backbone_row: float
    head: float
    head_row: float

    def __post_init__(self) -> None:
        if not all(isinstance(cost, int | float) and 0 <= cost < math.inf for cost in vars(self).values()):
            raise ValueError("costs of passes are numbers from 0 on")


class _Share:
    """A running success rate, shrunk towards a prior."""

    def __init__(self) -> None:
        self.kept = self.tried = 0.0

    def mean(self, prior: float) -> float:
        return (self.kept + PRIOR_WEIGHT * prior) / (self.tried + PRIOR_WEIGHT)

    def add(self, kept: bool) -> None:
        self.kept, self.tried = self.kept + kept, self.tried + 1

    def fade(self) -> None:
        self.kept, self.tried = self.kept * MEMORY, self.tried * MEMORY


class Drafting:
    """Decides for one answer whether the next head drafts.

    Args:
        costs: costs of passes on this machine.
        n_heads: heads that may draft.
    """

    def __init__(self, costs: PassCosts, n_heads: int):
        self._costs = costs
        self._by_head = [_Share() for _ in range(n_heads)]
        self._by_entropy = [_Share() for _ in range(len(ENTROPIES) + 1)]
        self._entropies: list[float | None] = []
        self._spent = 0.0  # spent on drafts in this round
        self._lost = 0.0  # balance against Vanilla over all rounds
        self._tokens, self._cost = 0, 0.0

    def pays(self, unread: int) -> bool:
        """Whether one more draft pays off.

        unread: rows that its head has to read first.
        """
        costs, drafted = self._costs, len(self._entropies)
        if drafted >= len(self._by_head):
            return False
        step = costs.head + (unread - 1) * costs.head_row + costs.backbone_row
        allowed = costs.backbone * (FIRST_CREDIT + CREDIT_PER_TOKEN * self._tokens)
        if self._lost + self._spent + step > allowed:
            return False
        # cost per token so far; the first one was the backbone's alone
        worth = min(costs.backbone, self._cost / self._tokens) if self._tokens else costs.backbone
        if costs.head + costs.backbone_row >= worth:  # even if it were certain to be accepted
            return False
        chances = self._chances()
        reached = math.prod(chances[:drafted])
        gain, best = 0.0, 0.0
        for chance in chances[drafted:]:
            reached *= chance
            gain += reached * worth - step
            best = max(best, gain)
            step = costs.head + costs.backbone_row
        return best > 0

    def drafted(self, unread: int, entropy: float | None) -> None:
        """Record a draft; entropy: of its head's distribution in nats, None if unknown."""
        costs = self._costs
        self._entropies.append(entropy)
        self._spent += costs.head + (unread - 1) * costs.head_row + costs.backbone_row

    def settled(self, kept: int) -> None:
        """Record that the backbone has verified the drafts of a round and accepted the first `kept` of them."""
        for share in (*self._by_head, *self._by_entropy):
            share.fade()
        for number, entropy in enumerate(self._entropies[: kept + 1]):
            self._by_head[number].add(number < kept)
            if entropy is not None:
                self._by_entropy[_class(entropy)].add(number < kept)
        self._tokens += kept + 1
        self._cost += self._costs.backbone + self._spent
        self._lost = self._cost - self._tokens * self._costs.backbone
        self._entropies.clear()
        self._spent = 0.0

    def _chances(self) -> list[float]:
        """Per head, the probability that its draft is accepted if those before it are."""
        chances, prior = [], PRIOR
        for number, share in enumerate(self._by_head):
            prior = share.mean(prior)
            entropy = self._entropies[number] if number < len(self._entropies) else None
            # where the entropy is known, it says more than the head's number
            chances.append(prior if entropy is None else self._by_entropy[_class(entropy)].mean(_bound(entropy, prior)))
        return chances


def _class(entropy: float) -> int:
    return sum(entropy > border for border in ENTROPIES)


def _bound(entropy: float, usual: float) -> float:
    """AdaEDL's lower bound of the acceptance probability, averaged with the head's usual rate."""
    return (max(0.0, 1 - math.sqrt(0.5 * entropy)) + usual) / 2
