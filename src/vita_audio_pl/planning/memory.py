"""Memory of one device in a training step, by kind, from the model's shapes and the engine.

What autograd keeps of a block is listed tensor by tensor; tests compare it with what autograd really keeps, and the sum
with the memory of a process. Not included: the CUDA context, workspaces of libraries, fragmentation, and what a
speech encoder in training keeps.
"""

from dataclasses import dataclass

from vita_audio_pl.models.attention import flash_shares_keys
from vita_audio_pl.models.blocks import blocks
from vita_audio_pl.models.families import BackboneConfig, family_of, head_size
from vita_audio_pl.models.flops import Work
from vita_audio_pl.models.parallel_heads import ParallelHead
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.training.engines.kinds import FSDP2, DeepSpeed
from vita_audio_pl.training.settings import TrainConfig

FLOAT, HALF, INDEX = 4, 2, 8
_ZERO_BUCKET = 200_000_000  # elements of DeepSpeed's buckets, as Lightning sets them
_ZERO_LIVE = 1_000_000_000  # most parameters that stage 3 keeps gathered
_ZERO_AHEAD = 50_000_000  # of them, those that it gathers ahead: received as one buffer, and then copied


@dataclass(frozen=True)
class Memory:
    """Bytes on one device; `host`: bytes of host memory, per device.

    `working` is temporary: gathered or cast copies of weights, buckets, the gradients of one block, the
    optimiser's temporaries. They are not all there at the same time, so `peak` is less than the sum.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float
    loss: float
    working: float
    peak: float
    host: float = 0.0


@dataclass(frozen=True)
class Arithmetic:
    """Bytes per number: `stream` of the residual stream, `products` of the inputs of matrices; `autocast`: whether it is on."""

    stream: int
    products: int
    autocast: bool

    @classmethod
    def of(cls, config: TrainConfig) -> "Arithmetic":
        if config.trainer.precision == "32-true":
            return cls(FLOAT, FLOAT, False)
        casts = config.trainer.precision == "bf16-mixed" and not config.trainer.engine.shards
        return cls(FLOAT if casts else HALF, HALF, casts)


def block_bytes(backbone: BackboneConfig, kinds: Arithmetic, attention: str, rows: float) -> float:
    """What the backward pass of a decoder layer keeps per row, its input included."""
    hidden, inner, heads = backbone.hidden_size, backbone.intermediate_size, backbone.num_attention_heads
    shared_heads = backbone.num_key_value_heads or heads
    query, shared = heads * head_size(backbone), shared_heads * head_size(backbone)
    norms = 2 * (2 * hidden * FLOAT + FLOAT)  # input and normed state in float32, and the scale
    if kinds.stream == HALF:
        norms = 2 * (hidden * FLOAT + hidden * HALF + FLOAT)
    if family_of(backbone).norms_heads:  # the same for each query and key, computed by a product
        norms += (query + shared) * (FLOAT + kinds.products) + (heads + shared_heads) * FLOAT
    # inputs of q, k, v, o, gate and up: each product makes its own cast
    read = (5 if kinds.autocast else 2) * hidden + query
    # keys, repeated for every query head
    repeated = attention == "sdpa" or attention == "flash" and not flash_shares_keys()
    keys = 2 * query if repeated else 2 * shared
    # documents' results before they are joined; sdpa keeps the mask of all pairs as numbers
    apart = {"per_document": query, "sdpa": rows}.get(attention, 0)
    gated = 4 * inner  # gate before and after its activation, up, and their product
    return norms + (read + query + keys + apart + gated) * kinds.products + heads * FLOAT


def head_bytes(
    backbone: BackboneConfig, kinds: Arithmetic, attention: str, rows: float, frozen_backbone: bool, first: bool
) -> float:
    """What the backward pass of an MCTP head keeps per row, the final norm included."""
    hidden, features = backbone.hidden_size, head_size(backbone)
    inside = Arithmetic(HALF if kinds.products == HALF else FLOAT, kinds.products, kinds.autocast)
    own = block_bytes(backbone, inside, attention, rows)
    joined = 2 * hidden * kinds.products
    angles = 2 * features * kinds.stream
    norms = 2 * 2 * hidden * FLOAT + 2 * FLOAT  # of token and previous state
    last = hidden * FLOAT + hidden * inside.stream + FLOAT
    if kinds.stream == HALF:
        norms = 2 * (hidden * FLOAT + hidden * HALF + FLOAT)
    if frozen_backbone:  # tokens, the backbone's states and the final norm's scale take no gradient
        norms -= (1 + first) * (hidden * FLOAT + FLOAT)
        last -= hidden * inside.stream
    return own + joined + angles + norms + last + 2 * INDEX


def parallel_head_bytes(backbone: BackboneConfig, kinds: Arithmetic) -> float:
    """What the backward pass of a parallel head keeps per row: its input, what SiLU reads, and the row's number."""
    return 2 * backbone.hidden_size * kinds.products + INDEX


def step_memory(model: SpeechLM, config: TrainConfig, work: Work, accumulate: int) -> Memory:
    """Memory of a training step.

    Args:
        model: with parameters frozen as in the stage; only shapes are read.
        config: engine, precision, activation checkpointing, attention.
        work: of one forward pass on one device.
        accumulate: forward passes per optimiser step.
    """
    trainer, backbone = config.trainer, model.config.backbone
    kinds, ranks = Arithmetic.of(config), trainer.world_size
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    on_gpu = trainer.accelerator != "cpu"

    largest_block = max(sum(p.numel() for p in block.parameters()) for block in blocks(model))
    shared = total - sum(p.numel() for block in blocks(model) for p in block.parameters())
    weights, gradients, optimiser, working, host = _states(
        config, total, trained, largest_block, shared, _products(model), ranks, accumulate
    )
    activations, recomputed = _activations(model, config, kinds, work)
    loss, kept_of_loss = _loss(model, config, kinds, work, accumulate)

    rows = max(work.tokens)
    inside = backbone.hidden_size * 3 + backbone.intermediate_size * 3
    backward = rows * inside * kinds.products + recomputed
    # at the end of the first backward pass all gradients are there; a tied embedding's two parts meet
    tied = backbone.tie_word_embeddings and model.lm_head.weight.requires_grad
    meeting = model.lm_head.weight.numel() * FLOAT if tied else 0.0
    held = gradients if accumulate > 1 else 0.0
    update = _update(model, trained, weights, ranks, config, on_gpu)
    moments = (
        held + activations + loss,
        held + activations + kept_of_loss + backward,
        gradients + meeting + (backward if accumulate == 1 else 0.0) * 0.5,
        gradients + update,
    )
    steady = weights + optimiser + working
    return Memory(
        weights, gradients, optimiser, activations, loss, working + max(backward, update), steady + max(moments), host
    )


def _states(
    config: TrainConfig, total: int, trained: int, block: int, shared: int, products: int, ranks: int, accumulate: int
) -> tuple[float, float, float, float, float]:
    """Weights, gradients, optimiser state, working copies on the device, and what is kept in host memory."""
    trainer = config.trainer
    half = trainer.precision != "32-true"
    if isinstance(trainer.engine, DeepSpeed):
        zero = trainer.engine
        model_bytes = HALF if half else FLOAT
        master = FLOAT * trained / ranks  # a float32 copy is kept for float32 models too
        optimiser, host = master + 2 * FLOAT * trained / ranks, 0.0
        gradients = FLOAT * trained / ranks
        bucket = model_bytes * float(min(_ZERO_BUCKET, trained))
        if zero.stage < 3:
            weights, working = model_bytes * float(total), 2 * bucket
        else:
            weights = model_bytes * total / ranks
            ahead = min(_ZERO_AHEAD, total)
            gathered = min(_ZERO_LIVE, total, shared + 2 * block + ahead)
            working = model_bytes * float(gathered) + max(bucket, model_bytes * float(ahead))
        if zero.offload:
            host, optimiser = optimiser + gradients, 0.0
            gradients = 0.0
            if zero.stage == 3:
                host, weights = host + weights, 0.0
        return weights, gradients, optimiser, working, host
    parameter = HALF if trainer.precision == "bf16-true" else FLOAT
    if trainer.engine.shards:
        gathered = HALF if half else FLOAT
        working = gathered * (shared + 2.0 * block) + FLOAT * (shared + block if trained > total / 2 else block)
        gradients = parameter * trained / ranks
        if isinstance(trainer.engine, FSDP2):
            ranks //= trainer.engine.replicas
            whole = trainer.engine.reduce == "step" and accumulate > 1
            gradients = float(FLOAT * trained) if whole else parameter * trained / ranks
            working += 0.0 if trainer.engine.reshard else gathered * float(total - shared - 2 * block)
        return parameter * total / ranks, gradients, 2.0 * parameter * trained / ranks, working, 0.0
    casts = HALF * float(products) if trainer.precision == "bf16-mixed" else 0.0
    return float(parameter * total), float(parameter * trained), 2.0 * parameter * trained, casts, 0.0


def _products(model: SpeechLM) -> int:
    """Elements of the trained matrices in blocks, whose casts autocast caches until the step ends."""
    return sum(p.numel() for block in blocks(model) for p in block.parameters() if p.requires_grad and p.dim() == 2)


def _activations(model: SpeechLM, config: TrainConfig, kinds: Arithmetic, work: Work) -> tuple[float, float]:
    """What is kept for the backward pass, and what one recomputed block needs in addition."""
    backbone, attention = model.config.backbone, config.model.kernel
    trains = model.train_backbone
    layer = block_bytes(backbone, kinds, attention, work.tokens[0])
    recomputed = 0.0
    kept = 0.0

    def of(block: object, full: float, given: float) -> float:
        nonlocal recomputed
        if not getattr(block, "gradient_checkpointing", False):
            return full
        recomputed = max(recomputed, full * work.tokens[0])
        return given

    tokens = work.tokens[0]
    if trains:
        kept += tokens * sum(of(b, layer, backbone.hidden_size * kinds.stream) for b in model.model.layers)
        features = head_size(backbone)
        final = backbone.hidden_size * (FLOAT + max(kinds.stream, HALF)) + FLOAT
        kept += tokens * (final + 2 * features * kinds.stream + INDEX)
    given = 2 * backbone.hidden_size * kinds.products + 2 * INDEX
    for k, (block, rows) in enumerate(zip(model.heads, work.tokens[1:], strict=False)):
        if isinstance(block, ParallelHead):
            full = parallel_head_bytes(backbone, kinds)
            kept += rows * of(block, full, min(full, given))
            continue
        kept += rows * of(block, head_bytes(backbone, kinds, attention, rows, not trains, k == 0), given)
    return kept, recomputed


def _loss(model: SpeechLM, config: TrainConfig, kinds: Arithmetic, work: Work, accumulate: int) -> tuple[float, float]:
    """Peak while the loss is computed, and what remains of it for the backward pass."""
    backbone = model.config.backbone
    scored = sum(work.scored)
    states = scored * backbone.hidden_size
    vocabulary = float(backbone.vocab_size)
    gradient = vocabulary * backbone.hidden_size * FLOAT if model.lm_head.weight.requires_grad else 0.0
    cast = vocabulary * backbone.hidden_size * HALF if kinds.autocast else 0.0
    # on a GPU in 16 bits the logits' gradient is cast, and each chunk's part of the vocabulary's gradient stands beside it
    in_16_bits = config.trainer.accelerator != "cpu" and kinds.products == HALF
    logit = config.objective.logit_tables * FLOAT + (HALF if in_16_bits else 0)
    chunk = min(config.objective.chunk_rows, scored) * (vocabulary * logit + 2 * backbone.hidden_size * FLOAT)
    chunk += gradient if in_16_bits else 0.0
    waits = states * kinds.stream + gradient
    return waits + 2 * states * kinds.stream + chunk + cast, waits


def _update(model: SpeechLM, trained: int, weights: float, ranks: int, config: TrainConfig, on_gpu: bool) -> float:
    """AdamW's temporaries: on a CPU one parameter at a time; on a GPU it is one kernel, for which only DeepSpeed
    makes a flat copy of the gradients."""
    engine = config.trainer.engine
    zero = isinstance(engine, DeepSpeed)
    if zero and engine.offload:
        return 0.0
    spread = ranks if engine.shards else 1
    if on_gpu:
        return FLOAT * trained / spread if zero else 0.0
    largest = max(p.numel() for p in model.parameters() if p.requires_grad)
    return 2.0 * FLOAT * largest / spread
