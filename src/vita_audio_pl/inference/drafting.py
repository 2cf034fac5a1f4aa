"""How many tokens the heads draft before the backbone checks them: as many as pay, and none where none do.

A draft costs a pass of a head and a row of the backbone's next pass, and saves a pass of the backbone if it is kept. Both
are known: the costs are measured on the machine, the chance is learnt from what was kept in this answer so far, by head and
by how sure the head was (its entropy, as AdaEDL has it, arXiv 2410.18351). How far to draft never depends on a drafted token
itself, so sampled verification keeps its distribution.

What drafting may lose against Vanilla is bounded, whatever the heads are: beyond a small credit a draft has to be paid for by
what earlier ones saved.
"""

import math
from dataclasses import dataclass

FIRST_CREDIT = 1.5
CREDIT_PER_TOKEN = 0.02
"""What drafting may have cost in all, in passes of the backbone over one token; the second for every token written."""
PRIOR = 0.8
"""Chance that a first draft is kept, before anything is known; a later head is taken to be as good as the one before it."""
PRIOR_WEIGHT = 1.0
"""Drafts that a prior counts as."""
MEMORY = 0.95
"""How much of what is known is left after a round, so that a voice or a language that begins is noticed."""
ENTROPIES = (0.05, 0.3, 1.0, 2.5)
"""Borders in nats between the classes of how sure a head is."""


@dataclass(frozen=True)
class PassCosts:
    """Seconds (any unit) of passes over one row and of each row more, vocabulary included.

    Attributes:
        backbone, backbone_row: of the backbone.
        head, head_row: of a head; a row more costs no vocabulary.
    """

    backbone: float
    backbone_row: float
    head: float
    head_row: float


class _Share:
    """A running share of successes, drawn to a prior."""

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
        costs: of this machine.
        n_heads: that may draft.
    """

    def __init__(self, costs: PassCosts, n_heads: int):
        self._costs = costs
        self._by_head = [_Share() for _ in range(n_heads)]
        self._by_entropy = [_Share() for _ in range(len(ENTROPIES) + 1)]
        self._entropies: list[float | None] = []
        self._spent = 0.0  # on drafts of this round
        self._lost = 0.0  # against Vanilla, in all rounds
        self._tokens, self._cost = 0, 0.0

    def pays(self, unread: int) -> bool:
        """Whether one more draft pays.

        unread: rows that its head has to read.
        """
        costs, drafted = self._costs, len(self._entropies)
        if drafted >= len(self._by_head):
            return False
        step = costs.head + (unread - 1) * costs.head_row + costs.backbone_row
        allowed = costs.backbone * (FIRST_CREDIT + CREDIT_PER_TOKEN * self._tokens)
        if self._lost + self._spent + step > allowed:
            return False
        # what a token costs here; the first one was the backbone's alone
        worth = min(costs.backbone, self._cost / self._tokens) if self._tokens else costs.backbone
        reached = math.prod(self._chances()[:drafted])
        gain, best = 0.0, 0.0
        for chance in self._chances()[drafted:]:
            reached *= chance
            gain += reached * worth - step
            best = max(best, gain)
            step = costs.head + costs.backbone_row
        return best > 0

    def drafted(self, unread: int, entropy: float | None) -> None:
        """Notes a draft; entropy: of its head's distribution in nats, None where it is not known."""
        costs = self._costs
        self._entropies.append(entropy)
        self._spent += costs.head + (unread - 1) * costs.head_row + costs.backbone_row

    def settled(self, kept: int) -> None:
        """Notes that the backbone has checked the drafts of a round, and kept the first `kept` of them."""
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
        """For each head, the chance that its draft is kept if those before it are."""
        chances, prior = [], PRIOR
        for number, share in enumerate(self._by_head):
            prior = share.mean(prior)
            entropy = self._entropies[number] if number < len(self._entropies) else None
            # where the head has been looked at, how sure it is says more than which one it is
            chances.append(prior if entropy is None else self._by_entropy[_class(entropy)].mean(_bound(entropy, prior)))
        return chances


def _class(entropy: float) -> int:
    return sum(entropy > border for border in ENTROPIES)


def _bound(entropy: float, usual: float) -> float:
    """AdaEDL's lower bound of the chance that a draft is kept, half way to what is usual for the head."""
    return (max(0.0, 1 - math.sqrt(0.5 * entropy)) + usual) / 2
