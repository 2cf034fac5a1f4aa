"""Cost of drafting on this machine, to decide how far to draft: rounds of the decoder are timed, not its passes alone.

A pass in a loop of its own misses what surrounds it: choosing tokens, bookkeeping, the decision itself, and the weights
that the other passes have driven out of the caches. On a small model that is most of what a head costs.
"""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.drafting import Drafting, PassCosts
from vita_audio_pl.inference.sequence import DecodedSequence, Options
from vita_audio_pl.inference.trials import clock
from vita_audio_pl.interleave import DecodePattern

if TYPE_CHECKING:
    from vita_audio_pl.inference.runtime import Runtime

WARM_UP, ROUNDS = 2, 7
"""Rounds of a sequence that are not counted (the prompt's, and the first that verifies), and all, if they draft."""
SHORT_ROUNDS = 21
LEAST_SECONDS = 1.0
"""After which no further sequences are timed."""
PATIENCE = 0.5
"""Seconds of a sequence's counted rounds after which it is not continued."""
CAUTION = 1.2
"""By how much a round without drafts may be undercut by the quickest of them."""
CONTEXT = 64
"""Tokens of the timed sequences' prompts, or as many as the model has positions for."""
ROW_ON_A_GPU = 0.005
"""Cost of an additional row on a GPU, in passes: reading the weights dominates there."""


def pass_costs(runtime: "Runtime") -> PassCosts:
    """On a CPU measured once and stored with the kernel timings; on a GPU the weights that each pass reads.

    So also for a model that has too few positions to be timed.
    """
    if runtime.device.type != "cpu" or runtime.max_positions <= written_in_all_rounds(runtime):
        vocabulary = runtime.vocab_size * runtime.hidden_size
        backbone = runtime.n_layers * runtime.weights_of_a_layer + vocabulary
        head = runtime.weights_of_a_head + vocabulary
        return PassCosts(backbone, ROW_ON_A_GPU * backbone, head, ROW_ON_A_GPU * head)
    vocabulary_size = f"{runtime.vocab_size}x{runtime.hidden_size}"
    shape = f"{runtime.n_layers}+{runtime.n_heads}x{runtime.weights_of_a_layer}, {vocabulary_size}"
    sizes = {
        name: plan.layout
        for name, plan in sorted(runtime.kernels.plans.items())
        # parts of the vocabulary come with constrained answers: before or after these costs are asked for
        if name.partition(":")[0] != "vocabulary" or name.endswith(f":{vocabulary_size}")
    }
    name = f"{shape}, {runtime.quantize or runtime.dtype}, {sizes}" + ("" if runtime.chained else ", parallel heads")
    return runtime.kernels.costs(name, lambda: measure_rounds(runtime))


def written_in_all_rounds(runtime: "Runtime") -> int:
    """Tokens, if all drafts are kept."""
    return ROUNDS * (runtime.n_heads + 1)


def measure_rounds(runtime: "Runtime") -> PassCosts:
    """Time rounds without drafts and with full drafts of which none or all are kept, some of each by turns.

    Drafts have to beat the best that Vanilla does, as they usually are: the least of rounds without, a low quartile of others.
    Other load lengthens both, so what is stored does not go far apart because of it.
    """
    n, now = runtime.n_heads, clock()
    rehearsals = [Rehearsal(runtime, *kind) for kind in ((0, False), (n, False), (n, True))]
    begun = now()
    while not rehearsals[0].backbone or now() - begun < LEAST_SECONDS:
        for rehearsal in rehearsals:
            rehearsal.begin()
            for repetition in range(rehearsal.rounds):
                if repetition == WARM_UP:
                    counted = now()
                if repetition > WARM_UP and now() - counted > PATIENCE:
                    break
                rehearsal.play(counts=repetition >= WARM_UP)
    vanilla, *drafting = rehearsals
    backbone, plain = (max(min(spent), _usual(spent) / CAUTION) for spent in (vanilla.backbone, vanilla.drafting))
    refused_backbone, _ = (_usual(rehearsal.backbone) for rehearsal in drafting)
    refused, kept = (_usual(rehearsal.drafting) for rehearsal in drafting)
    # head k reads k + 1 rows after a round that kept nothing, n + 1 after one that kept everything
    head_row = max(0.0, (kept - refused) / (n * (n + 1) / 2))
    head = (refused - plain) / n - head_row * (n - 1) / 2
    return PassCosts(backbone + plain, max(0.0, (refused_backbone - backbone) / n), max(0.0, head), head_row)


def _usual(seconds: list[float]) -> float:
    """A low quartile: other load that comes and goes is not what a round takes."""
    return float(np.quantile(seconds, 0.25))


class Rehearsal(Decoder):
    """Decodes one sequence with all the work of verification, but every round drafts as much, and keeps all or nothing.

    Attributes:
        backbone: seconds of each round up to the tokens that the backbone lets stand.
        drafting: seconds of the rest of it, heads and the decisions to draft.
        rounds: of a sequence. More without drafts: they are shorter, and heads have left the backbone cold caches.
    """

    def __init__(self, runtime: "Runtime", drafts: int, keeps: bool):
        written = written_in_all_rounds(runtime)
        context = min(CONTEXT, runtime.max_positions - written)
        super().__init__(runtime, capacity=context + written, graphs=False, clock=clock())
        self._prompt = [0] * context
        self._options = Options(DecodePattern.of([1, runtime.n_heads]), written, verify="greedy")
        self._drafts, self._keeps = drafts, keeps
        self.rounds = ROUNDS if drafts else min(SHORT_ROUNDS, written)
        self.backbone: list[float] = []
        self.drafting: list[float] = []

    def begin(self) -> None:
        """Start a sequence in place of the last one."""
        for sequence in filter(None, self._sequences):
            self.close(sequence)
        self.open(self._prompt, self._options)

    def play(self, counts: bool) -> None:
        """One round; counts: and keep what it took."""
        begun, before = self._clock(), self.seconds["backbone"]
        self.step()
        backbone = self.seconds["backbone"] - before
        if counts:
            self.backbone.append(backbone)
            self.drafting.append(self._clock() - begun - backbone)

    def _new_drafting(self) -> Drafting:
        return _FixedDrafting(self.n_heads, self._drafts)

    def _most_likely(
        self,
        sequences: list[DecodedSequence],
        hidden: Tensor,
        greedy_rows: list[int],
        counts: list[int] | None = None,
        entropies: list[float | None] | None = None,
    ) -> list[int]:
        found = super()._most_likely(sequences, hidden, greedy_rows, counts, entropies)
        drafted = counts is None
        return [0 if self._keeps or not drafted else 1] * len(found)


class _FixedDrafting(Drafting):
    """Weighs every draft as `Drafting` does, and then drafts as many as it was told."""

    def __init__(self, n_heads: int, drafts: int):
        super().__init__(PassCosts(1.0, 0.0, 0.0, 0.0), n_heads)
        self._drafts = drafts

    def pays(self, unread: int) -> bool:
        super().pays(unread)
        return len(self._entropies) < self._drafts
