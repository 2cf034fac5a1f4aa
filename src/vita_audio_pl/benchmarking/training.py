"""A training step of ours against the plain way to compute the same formula."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2Config

from vita_audio_pl.benchmarking.cost import Cost, measure
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.layout import PackedLayout
from vita_audio_pl.models.objectives import EveryHead, build_objective
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch

STAGES = ("mtp10", "sft")


@dataclass(frozen=True)
class TrainingSize:
    """Model and row of the benchmark; `labelled`: share of the tokens with a label; lengths in tokens."""

    hidden_size: int = 256
    intermediate_size: int = 1024
    layers: int = 4
    attention_heads: int = 4
    key_value_heads: int = 2
    vocabulary: int = 20000
    heads: int = 10
    length: int = 2048
    documents: int = 8
    labelled: float = 0.6
    pattern: str = "boost"


@dataclass(frozen=True)
class StepResult:
    """seconds: median over the repetitions; peak_bytes: memory above what was held before; loss: the step's."""

    name: str
    seconds: float
    peak_bytes: int
    loss: float


@dataclass(frozen=True)
class TrainingComparison:
    """naive: every head, every row, every logit; ours: the same objective; others: further objectives of ours."""

    stage: str
    device: str
    size: dict
    naive: StepResult
    ours: StepResult
    others: tuple[StepResult, ...] = ()

    def times_faster(self, result: StepResult) -> float:
        return self.naive.seconds / result.seconds

    def memory_share(self, result: StepResult) -> float:
        return result.peak_bytes / self.naive.peak_bytes

    @property
    def loss_difference(self) -> float:
        """Relative difference between the naive loss and ours."""
        return abs(self.ours.loss - self.naive.loss) / abs(self.naive.loss)


def benchmark_training(
    stage: str,
    size: TrainingSize | None = None,
    *,
    repetitions: int = 3,
    objectives: tuple[str, ...] = ("served_slots",),
    attention: str = "per_document",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk_rows: int = 512,
    seed: int = 0,
) -> TrainingComparison:
    """Costs of forward and backward, interleaved: naive, ours, further objectives, naive, ours, ...

    The first round measures memory, the others time.

    Args:
        stage: `mtp10` (the language model is frozen) or `sft` (everything trains).
        objectives: objectives besides `every_head`; they need no vocabulary.
        attention: kernel of ours; the naive step uses sdpa with a block-diagonal mask over the whole row.

    Raises:
        UserError: an unknown stage.
    """
    if stage not in STAGES:
        raise UserError(f"benchmark.stage is '{stage}'; it must be one of {', '.join(STAGES)}")
    size = size or TrainingSize()
    place = torch.device(device)
    model, batch = make_model(size, attention, place, dtype, seed), make_batch(size, seed).to(place)
    if stage == "mtp10":
        model.requires_grad_(False)
        model.heads.requires_grad_(True)
    every = build_objective("every_head", chunk_rows=chunk_rows)
    steps: dict[str, Callable[[], Tensor]] = {
        "naive": lambda: naive_loss(model, batch),
        "every_head": lambda: model(batch, every).total,
    }
    for name in objectives:
        objective = build_objective(name, chunk_rows=chunk_rows)
        steps[name] = lambda objective=objective: model(batch, objective).total
    costs: dict[str, list[Cost]] = {name: [] for name in steps}
    losses = {}
    for repetition in range(1 + repetitions):
        for name, step in steps.items():
            model.zero_grad()
            losses[name], cost = measure(lambda step=step: _forward_backward(step), place, memory=repetition == 0)
            costs[name].append(cost)

    def result(name: str) -> StepResult:
        first, *counted = costs[name]
        return StepResult(name, statistics.median(cost.seconds for cost in counted), first.peak_bytes, losses[name])

    naive, ours, *others = map(result, steps)
    return TrainingComparison(stage, device, asdict(size), naive, ours, tuple(others))


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
    total = torch.zeros((), device=batch.input_ids.device)
    for predictor, values in enumerate(logits):
        tokens = layout.head(predictor - 1).tokens if predictor else slice(None)
        targets = torch.from_numpy(layout.targets[tokens]).to(values.device)
        loss = F.cross_entropy(values[0], targets, ignore_index=IGNORE_INDEX, reduction="sum") / batch.divisor
        if predictor or model.train_backbone:
            total = total + objective.weight_of(predictor, model.n_heads) * loss
    return total


def make_model(size: TrainingSize, attention: str, device: torch.device, dtype: torch.dtype, seed: int) -> SpeechLM:
    """A randomly initialised model of that size."""
    torch.manual_seed(seed)
    backbone = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.attention_heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=size.length,
    )
    config = SpeechLMConfig(backbone, size.heads, attention)
    with torch.device(device):
        return SpeechLM(config).to(dtype).train()


def make_batch(size: TrainingSize, seed: int) -> PackedBatch:
    """One row of documents of unequal length, each a prompt and a labelled answer that follows the decoding pattern."""
    random = torch.Generator().manual_seed(seed)
    shares = torch.rand(size.documents, generator=random) + 0.5
    ends = (shares.cumsum(0) / shares.sum() * size.length).round().long()
    lengths = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.int64)).tolist()
    ids = torch.randint(size.vocabulary, (1, size.length), generator=random)
    labels, writers = torch.full_like(ids, IGNORE_INDEX), torch.full(ids.shape, -1, dtype=torch.int8)
    start = 0
    for length in lengths:
        answer = round(length * size.labelled)
        span = slice(start + length - answer, start + length)
        labels[0, span] = ids[0, span]
        writers[0, span] = torch.from_numpy(DecodePattern.of(size.pattern).writers(answer, size.heads).copy())
        start += length
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    documents = torch.repeat_interleave(torch.arange(size.documents), torch.tensor(lengths))[None].int()
    sources = torch.zeros_like(ids, dtype=torch.int16)
    names = [[f"benchmark/{i}" for i in range(size.documents)]]
    return PackedBatch(
        ids, labels, positions, documents, writers, None, float((labels >= 0).sum()), sources, names, {}
    )
