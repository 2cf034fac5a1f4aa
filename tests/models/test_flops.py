"""The operations that plans and MFU are made of, against torch's own count on built models."""

import dataclasses
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vita_audio_pl.benchmarking.random_model import random_model
from vita_audio_pl.benchmarking.rows import make_batch
from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.models.flops import StepFlops, Work, frames_and_pairs, rows_and_pairs
from vita_audio_pl.models.heads import FORMS, HeadStack
from vita_audio_pl.models.initialise import add_speech_input
from vita_audio_pl.models.layout import PackedLayout
from vita_audio_pl.models.lora import add_lora
from vita_audio_pl.models.objectives import build_objective
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.text.vocabulary import Vocabulary
from vita_audio_pl.training.step.freezing import freeze

SIZE = TrainingSize(
    hidden_size=16, intermediate_size=40, layers=3, attention_heads=4, key_value_heads=2, vocabulary=88,
    heads=3, length=96, documents=5,
)  # fmt: skip
VOCABULARY = Vocabulary(20, 40, im_start=1, im_end=2, pad=0)
BACKBONE = r"^(model|lm_head)\."


def built(heads: int = 3, tied: bool = False, **others):
    return random_model(dataclasses.replace(SIZE, heads=heads, tied=tied, **others), SIZE.length)


def in_form(model, form: str) -> None:
    """Give a model heads of a form, in place."""
    model.config.heads, model.heads = form, HeadStack(model.config.backbone, model.n_heads, form)


def addmm_(total, left, right, out_shape=None, **options):
    """torch counts `addmm` and leaves `addmm_` out."""
    return 2 * left[0] * left[1] * right[1]


def depthwise_backward(*shapes, groups=None, out_shape=None, **options):
    """torch counts the weight's gradient as if every channel met every other; here each meets itself alone."""
    grad_out, _, weight, *_, wanted = shapes
    each = 2 * grad_out[0] * grad_out[2] * math.prod(weight)
    return each * (wanted[0] + wanted[1])


OWN = {torch.ops.aten.addmm_: addmm_, torch.ops.aten.convolution_backward: depthwise_backward}


def counted(model, batch, objective) -> tuple[int, torch.Tensor]:
    """Operations that torch saw in forward and backward, with attention as plain products, and the scored labels."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=OWN) as counter:
        losses = model(batch, objective)
        losses.total.backward()
    return counter.get_total_flops(), losses.counts


def every_pair(model, batch, counts) -> Work:
    """The work of attention that makes all pairs and throws those of the future away, as plain products do."""
    lengths = PackedLayout(batch).documents.lengths
    kept = [[max(0, n - k) for n in lengths] for k in (0, *range(1, 1 + model.n_heads))]
    return Work(
        [sum(each) for each in kept],
        [sum(n * n for n in each) for each in kept],
        counts.tolist(),
        *frames_and_pairs(batch),
    )


@pytest.mark.parametrize(
    ("frozen", "objective", "heads", "tied"),
    [
        ((), "every_head", 0, False),
        ((), "every_head", 3, False),
        ((), "every_head", 3, True),
        ((BACKBONE,), "every_head", 1, False),
        ((BACKBONE,), "every_head", 3, True),
        ((BACKBONE, r"^heads\.[01]\."), "every_head", 3, False),
        ((r"embed_tokens", r"^model\.layers\.[01]\."), "every_head", 3, False),
        ((r"lm_head", r"layers.*mlp"), "every_head", 3, False),
        ((), "served_slots", 3, False),
        ((BACKBONE,), "served_slots", 3, False),
        ((BACKBONE,), "audio_only", 3, False),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_the_count_is_exactly_torchs_count_of_the_built_model(frozen, objective, heads, tied, form):
    model, batch = built(heads, tied), make_batch(SIZE, 0)
    in_form(model, form)
    freeze(model, frozen)
    chosen = build_objective(objective, VOCABULARY)
    total, counts = counted(model, batch, chosen)
    assert StepFlops(model, chosen).of(every_pair(model, batch, counts)) == total


@pytest.mark.parametrize("frozen", [(), (BACKBONE,), (r"layers.*proj",)])
def test_another_family_is_counted_exactly(frozen):
    """Wider queries than the hidden size; the last case trains the norms of queries and keys alone."""
    model, batch = built(family="qwen3", head_dim=12), make_batch(SIZE, 0)
    freeze(model, frozen)
    objective = build_objective("every_head", VOCABULARY)
    total, counts = counted(model, batch, objective)
    assert StepFlops(model, objective).of(every_pair(model, batch, counts)) == total


def test_adapters_are_counted_exactly():
    model, batch, objective = built(2), make_batch(SIZE, 0), build_objective("every_head")
    add_lora(model, 4)
    freeze(model, ())
    total, counts = counted(model, batch, objective)
    assert StepFlops(model, objective).of(every_pair(model, batch, counts)) == total


def test_distillation_is_counted_to_a_thousandth():
    """The teacher's row of a token whose heads fall into two chunks is made twice, which the count leaves out."""
    model, batch = built(), make_batch(SIZE, 0)
    freeze(model, (BACKBONE,))
    objective = build_objective("distil", chunk_rows=4096)
    total, counts = counted(model, batch, objective)
    assert StepFlops(model, objective).of(every_pair(model, batch, counts)) == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize(
    ("frozen", "train_encoder"),
    [
        ((), False),
        ((), True),
        ((BACKBONE, r"^speech_input\."), False),
        ((r"audio_projection", r"\.embed\.", r"encoders0"), True),
        ((r"fsmn_block", r"linear_q_k_v", r"norm"), True),
    ],
)
def test_a_speech_encoder_is_counted_exactly(frozen, train_encoder):
    model, objective = built(1), build_objective("every_head")
    settings = SenseVoiceConfig(width=16, heads=2, ffn_width=24, layers=2, text_layers=1, memory=3)
    add_speech_input(model, SenseVoiceEncoder(settings), context_of_audio=87)
    freeze(model, frozen, train_encoder=train_encoder)
    batch = make_batch(SIZE, 0)
    batch.input_ids.clamp_(max=86)
    batch.input_ids[0, :12] = 87
    batch.clips = (torch.randn(8, settings.input_size),)
    total, counts = counted(model, batch, objective)
    assert StepFlops(model, objective).of(every_pair(model, batch, counts)) == total


def test_attention_counts_the_pairs_that_see_each_other():
    batch = make_batch(SIZE, 0)
    batch.document_ids[0, -7:] = -1
    layout = PackedLayout(batch)
    parts = [layout.documents, *(layout.head(k).documents for k in range(3))]
    tokens, pairs = rows_and_pairs(batch, 3).chunk(2)
    assert tokens.tolist() == [part.total for part in parts]
    assert pairs.tolist() == [sum(n * (n + 1) // 2 for n in part.lengths) for part in parts]
