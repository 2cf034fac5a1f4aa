"""A training step of ours compared with the straightforward way to compute the same loss."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vita_audio_pl.benchmarking.cost import Cost, measure
from vita_audio_pl.benchmarking.flops import step_flops
from vita_audio_pl.benchmarking.random_model import random_model
from vita_audio_pl.benchmarking.rows import make_batch
from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.errors import UserError
from vita_audio_pl.models.devices import require_device
from vita_audio_pl.models.layout import PackedLayout
from vita_audio_pl.models.objectives import EveryHead, HeadLosses, Objective, build_objective
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch

STAGES = ("mtp1", "mtp10", "sft")
NAIVE, OURS, LIGER = "naive", "every_head", "every_head_liger"


@dataclass(frozen=True)
class StepResult:
    """One way to do a step.

    Attributes:
        seconds: median over the repetitions: CPU seconds of all threads, or elapsed seconds on a GPU.
        peak_bytes: memory above what was held before; held_bytes: what was, weights included.
        loss: of the step.
        flops: operations that the objective asks for.
    """

    name: str
    seconds: float
    peak_bytes: int
    held_bytes: int
    loss: float
    flops: float


@dataclass(frozen=True)
class TrainingComparison:
    """Steps of one stage: `naive` (where it was asked for), `every_head` of ours, further objectives of ours."""

    stage: str
    device: str
    steps: dict[str, StepResult]

    def times_faster(self, name: str) -> float | None:
        """Speed-up over the naive step."""
        naive = self.steps.get(NAIVE)
        return None if naive is None else naive.seconds / self.steps[name].seconds

    def memory_share(self, name: str) -> float | None:
        """Additional memory, relative to the naive step's."""
        naive = self.steps.get(NAIVE)
        return None if naive is None else self.steps[name].peak_bytes / naive.peak_bytes

    @property
    def loss_difference(self) -> float | None:
        """Relative difference between the naive loss and ours."""
        naive = self.steps.get(NAIVE)
        return None if naive is None else abs(self.steps[OURS].loss - naive.loss) / abs(naive.loss)


def benchmark_training(
    stage: str,
    size: TrainingSize | None = None,
    *,
    objectives: Sequence[str] = ("served_slots",),
    naive: bool = True,
    liger: bool = False,
    repetitions: int = 3,
    attention: str = "per_document",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk_rows: int = 512,
    seed: int = 0,
) -> TrainingComparison:
    """Costs of forward and backward, interleaved: naive, ours, further objectives, naive, ours, ...

    The first round measures memory, the others time.

    Args:
        stage: `mtp1` (one head, the language model is frozen), `mtp10` (all heads, frozen) or `sft` (everything trains).
        objectives: objectives of ours besides `every_head`, of those that need no vocabulary.
        naive: whether the plain step is measured too; at real sizes it does not fit.
        liger: `every_head` with Liger's kernel, too; CUDA only.
        attention: kernel of ours; the naive step uses sdpa with a block-diagonal mask over the whole row.

    Raises:
        UserError: an unknown stage, no repetition, or a device that is not there.
    """
    require_device(device)
    if stage not in STAGES:
        raise UserError(f"the stage to measure is '{stage}'; it must be one of {', '.join(STAGES)}")
    if repetitions < 1:
        raise UserError(f"repetitions is {repetitions}; it must be at least 1")
    size, place = size or TrainingSize(), torch.device(device)
    size = replace(size, heads=1) if stage == "mtp1" else size
    model = random_model(size, size.length, place, dtype, attention=attention, seed=seed).train()
    batch = make_batch(size, seed).to(place)
    if stage != "sft":
        model.requires_grad_(False)
        model.heads.requires_grad_(True)
    chosen = {name: build_objective(name, chunk_rows=chunk_rows) for name in (OURS, *objectives)}
    if liger:
        chosen[LIGER] = build_objective(OURS, kernel="liger")
    steps: dict[str, Callable[[], Tensor]] = {NAIVE: lambda: naive_loss(model, batch)} if naive else {}
    for name, objective in chosen.items():
        steps[name] = partial(_loss, model, batch, objective)
    costs: dict[str, list[Cost]] = {name: [] for name in steps}
    losses: dict[str, float] = {}
    for repetition in range(1 + repetitions):
        for name, step in steps.items():
            model.zero_grad()
            losses[name], cost = measure(partial(_forward_backward, step), place, memory=repetition == 0)
            costs[name].append(cost)
    results = {}
    for name, (first, *counted) in costs.items():
        seconds = statistics.median(cost.seconds for cost in counted)
        flops = step_flops(model, batch, chosen.get(name, chosen[OURS]))
        results[name] = StepResult(name, seconds, first.peak_bytes, first.held_bytes, losses[name], flops)
    return TrainingComparison(stage, device, results)


def _loss(model: SpeechLM, batch: PackedBatch, objective: Objective) -> Tensor:
    losses: HeadLosses = model(batch, objective)
    return losses.total


def _forward_backward(step: Callable[[], Tensor]) -> float:
    loss = step()
    loss.backward()
    return loss.item()


def naive_loss(model: SpeechLM, batch: PackedBatch, objective: EveryHead | None = None) -> Tensor:
    """`every_head`, written down plainly: full logits of the backbone and each head, then `F.cross_entropy`.

    The layers are the model's own, under one block-diagonal mask for the whole row.
    """
    objective = objective or EveryHead()
    layout = PackedLayout(batch)
    kernel, model.config.attention = model.config.attention, "sdpa"
    try:
        logits = [logits.float() for logits in model.logits(batch)]
    finally:
        model.config.attention = kernel
    total = torch.zeros((), device=batch.device)
    for predictor, values in enumerate(logits):
        tokens = layout.head(predictor - 1).tokens if predictor else slice(None)
        targets = torch.from_numpy(layout.targets[tokens]).to(values.device)
        loss = F.cross_entropy(values[0], targets, ignore_index=IGNORE_INDEX, reduction="sum") / batch.divisor
        if predictor or model.train_backbone:
            total = total + objective.weight_of(predictor, model.n_heads) * loss
    return total
