"""Floating-point operations that a training step's formula asks for, however it is computed."""

from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.models.layout import PackedLayout
from vita_audio_pl.models.objectives import EveryHead
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.packed import PackedBatch


def step_flops(model: SpeechLM, batch: PackedBatch, objective: EveryHead, size: TrainingSize) -> int:
    """Operations of forward and backward: a multiplication and an addition count as two.

    A matrix is used once forward, once for the gradient of its input and, where it trains, once for its own; nothing is
    counted twice for recomputation. Attention counts the pairs of tokens that see each other.
    """
    layout = PackedLayout(batch)
    trains = model.train_backbone
    layer = sum(p.numel() for p in model.model.layers[0].parameters() if p.dim() == 2)
    backbone_uses, head_uses = (3 if trains else 1), 3
    total = size.layers * backbone_uses * (2 * layer * len(layout) + _attention(layout.documents.lengths, size))
    vocabulary = 2 * size.vocabulary * size.hidden_size
    if trains:
        total += 3 * vocabulary * int(objective.trains_on(layout, 0).sum())
    for k in range(model.n_heads if objective.weight else 0):
        rows = layout.head(k)
        block = layer + 2 * size.hidden_size**2
        total += head_uses * (2 * block * len(rows.tokens) + _attention(rows.documents.lengths, size))
        scored = int(objective.trains_on(layout, k + 1)[rows.tokens].sum())
        total += (3 if trains else 2) * vocabulary * scored
    return total


def _attention(lengths: tuple[int, ...], size: TrainingSize) -> int:
    """Scores and weighted sums of one layer, causal, forward."""
    return sum(2 * 2 * size.hidden_size * n * (n + 1) // 2 for n in lengths)
