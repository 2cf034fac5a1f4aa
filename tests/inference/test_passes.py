"""A pass with fixed shapes or compiled pieces gives what a plain pass gives."""

import copy
from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from tests.margins import assert_most_likely, assert_same_answers
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, Sampling, generate, graphs
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.graphs import StaticRows, context_lengths
from vita_audio_pl.inference.products import (
    KERNELS,
    LAYOUTS,
    Float32Logits,
    Packed,
    Plan,
    PlannedProduct,
    vocabulary_product,
)
from vita_audio_pl.inference.rows import Span
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.inference.shapes import Shape, recurring_shapes
from vita_audio_pl.interleave import DecodePattern


@pytest.fixture
def imitated_graphs(monkeypatch):
    """Replays work on the CPU as a graph would: results stay where they are; short contexts, so that they change."""

    class Imitated:
        captured = replays = 0

        def __init__(self, device):
            pass

        def __call__(self, work):
            Imitated.captured += 1
            result = work()

            class Replay:
                def replay(self):
                    Imitated.replays += 1
                    result.copy_(work())

            return Replay(), result

    monkeypatch.setattr(graphs, "CudaCapture", Imitated)
    monkeypatch.setattr(graphs, "SHORTEST_CONTEXT", 16)
    return Imitated


@torch.inference_mode()
@pytest.mark.parametrize(
    "spans", [[Span(0, 0, 9)], [Span(1, 13, 17)], [Span(0, 4, 5), Span(1, 7, 8)], [Span(1, 3, 6), Span(2, 8, 11)]]
)
def test_a_rounded_up_context_changes_nothing(runtime, prompts, spans):
    results = []
    for wrap in (lambda rows, cache: rows, lambda rows, cache: StaticRows(rows, 40).fresh()):
        cache = runtime.new_cache(slots=3, capacity=40, n_heads=3)
        for slot, ids in enumerate(prompts(20, 20, 20)):
            runtime.run(0, runtime.rows(0, [Span(slot, 0, 20)], ids), cache)
        ids = [i for span in spans for i in range(span.length)]
        results.append(runtime.run(0, wrap(runtime.rows(0, spans, ids), cache), cache))
        results.append(cache.memory)
    torch.testing.assert_close(results[0], results[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[1], results[3], atol=1e-5, rtol=1e-5)


def test_cuda_graphs_are_refused_without_a_gpu(runtime):
    if runtime.device.type == "cpu":
        with pytest.raises(UserError, match="CUDA graphs need a GPU"):
            Decoder(runtime, capacity=16, graphs=True)


@pytest.mark.parametrize("mode", ["vanilla", "boost", "balance", "turbo", [2, 1, 1, 5]])
def test_every_pass_after_the_prompt_replays_a_graph(mode, tiny_model, prompts, imitated_graphs):
    model, [prompt], pattern = tiny_model(n_heads=6), prompts(23), DecodePattern.of(mode)
    runtime = Runtime(model)
    [plain] = generate(runtime, [prompt], pattern, max_new_tokens=90)
    [replayed] = generate(runtime, [prompt], pattern, max_new_tokens=90, graphs=True)
    assert_same_answers(model, pattern, [prompt], [replayed.ids], [plain.ids])
    assert replace(replayed, ids=[]) == replace(plain, ids=[])
    reading_the_prompt = 1 + max(plain.writers)
    assert imitated_graphs.replays == plain.backbone_passes + plain.head_passes - reading_the_prompt


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("verify", ["greedy", "sample"])
def test_graphs_write_the_same_tokens_under_verification(
    sessions, verify, agreeing, agreeing_runtime, prompts, imitated_graphs
):
    batch = prompts(5, 9, 12)[:sessions]
    settings = {"max_new_tokens": 60, "verify": verify, "batch_size": sessions}
    settings["sampling"] = Sampling(temperature=1e-6 if verify == "sample" else 0.0)  # all is drawn, the largest logit
    plain = generate(agreeing_runtime, batch, DecodePattern.of("turbo"), **settings)
    replayed = generate(agreeing_runtime, batch, DecodePattern.of("turbo"), **settings, graphs=True)
    found, expected = ([answer.ids for answer in answers] for answers in (replayed, plain))
    assert_same_answers(agreeing, DecodePattern.of("vanilla"), batch, found, expected)
    passes = sum(answer.backbone_passes + answer.head_passes for answer in replayed)
    assert imitated_graphs.replays > (0.7 * passes if sessions == 1 else 0)


def test_graphs_are_captured_when_a_pattern_is_first_opened_and_disturb_nobody(
    model, runtime, prompts, imitated_graphs
):
    batch = prompts(12, 12)
    patterns = DecodePattern.of("boost"), DecodePattern.of("turbo")
    alone = [generate(runtime, [p], q, max_new_tokens=60)[0].ids for p, q in zip(batch, patterns, strict=True)]
    decoder, sequences = Decoder(runtime, slots=2, capacity=72, graphs=True), []
    known: set[Shape] = set()
    for prompt, pattern in zip(batch, patterns, strict=True):
        captured, shapes = imitated_graphs.captured, recurring_shapes(pattern, 3, False, runtime.chained)
        sequences.append(decoder.open(prompt, Options(pattern, 60)))
        # parallel heads read one row in every pattern, so the second pattern brings nothing new
        assert (imitated_graphs.captured > captured) == bool(shapes - known)
        assert shapes - known or not runtime.chained
        known |= shapes
        captured = imitated_graphs.captured
        for _ in range(3):
            decoder.step()
    while not all(sequence.finished for sequence in sequences):
        decoder.step()
    for sequence in sequences:
        decoder.close(sequence)
    decoder.open(batch[0], Options(patterns[0], 60))
    assert imitated_graphs.captured == captured
    for prompt, pattern, sequence, expected in zip(batch, patterns, sequences, alone, strict=True):
        assert_same_answers(model, pattern, [prompt], [sequence.result().ids], [expected])


def test_contexts_double_up_to_the_capacity():
    assert context_lengths(100) == [100] and context_lengths(1100) == [256, 512, 1100]
    assert context_lengths(4128) == [256, 512, 1024, 2048, 4128]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["vanilla", "boost", "turbo"])
def test_cuda_graphs_write_the_same_tokens(tiny_model, prompts, mode):
    model, pattern, [prompt] = tiny_model().cuda(), DecodePattern.of(mode), prompts(12)
    runtime = Runtime(model)
    [plain] = generate(runtime, [prompt], pattern, max_new_tokens=300, graphs=False)
    [replayed] = generate(runtime, [prompt], pattern, max_new_tokens=300)
    assert_same_answers(model, pattern, [prompt], [replayed.ids], [plain.ids])


@pytest.mark.slow
def test_compiled_pieces_write_the_same_tokens(tiny_model, prompts):
    model, batch, pattern = tiny_model(n_heads=1), prompts(5), DecodePattern.of([1, 1])
    plain = generate(Runtime(model), batch, pattern, max_new_tokens=8)
    compiled = generate(Runtime(model, compile=True), batch, pattern, max_new_tokens=8)
    assert_same_answers(model, pattern, batch, [a.ids for a in compiled], [a.ids for a in plain])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("outputs", "inputs"), [(512, 256), (500, 250)])
def test_every_kernel_of_every_layout_multiplies(layout, biased, outputs, inputs):
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=random)
    bias = torch.randn(outputs, generator=random) if biased else None
    for name, kernel in KERNELS[layout].items():
        plan = Plan(layout, ((1, name), (2, next(iter(KERNELS[layout])))))
        product = PlannedProduct(weight, bias, plan)
        assert torch.equal(product.dense(), weight)
        for rows in (1, 2, 3, 40):
            x, total = (torch.randn(rows, n, generator=random) for n in (inputs, outputs))
            expected = torch.nn.functional.linear(x, weight, bias)
            torch.testing.assert_close(product(x), expected, atol=1e-4, rtol=1e-4, msg=name)
            assert product(x).is_contiguous() and (kernel.only_rows or rows) in (1, rows)
            summed = product.add_to(total.clone(), x)
            torch.testing.assert_close(summed, total + expected, atol=1e-4, rtol=1e-4, msg=name)


def test_one_row_is_multiplied_from_the_memory_that_more_rows_are():
    """Where the processor's layout is in blocks; no weight is held twice."""
    weight = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    packed = Packed.of(weight)
    if packed.blocks is None:
        pytest.skip("oneDNN lays matrices out otherwise on this processor")
    blocks, address = packed.blocks, torch.ops.mkldnn.data_ptr(packed.opaque)
    del packed
    others = [Packed.of(-weight) for _ in range(3)]  # in freed memory, if it were
    assert blocks.data_ptr() == address and torch.equal(blocks.transpose(1, 2).reshape(512, 256), weight)
    assert all(each.blocks.data_ptr() != address for each in others)
    assert Packed.of(torch.randn(510, 256)).blocks is None  # its last block is padded


def test_16_bit_logits_on_a_gpu_are_float32():
    """Neighbours near 20 are an eighth apart in bfloat16, so that ties would hide the larger one."""
    with FakeTensorMode():
        weight, x = (torch.empty(n, 64, dtype=torch.bfloat16, device="cuda") for n in (300, 3))
        logits = vocabulary_product(weight)
        assert isinstance(logits, Float32Logits) and logits(x).dtype == torch.float32 and logits(x).shape == (3, 300)
        assert isinstance(vocabulary_product(weight.float()), PlannedProduct)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_model_decodes_in_any_layout_to_the_training_function(layout, prompts):
    """The same check as for tiny models, once, where every matrix is large enough to be laid out; the model gives its weights
    away, and the runtime's answers are those of a copy that kept them."""
    from transformers import Qwen2Config

    from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    model = SpeechLM(SpeechLMConfig(Qwen2Config(vocab_size=512, **sizes, **heads), 2)).eval()
    batch, pattern = prompts(9, 4), DecodePattern.of([1, 3, 2, 2])
    for norm in [m for m in model.modules() if type(m).__name__ == "Qwen2RMSNorm"]:
        norm.weight.data.uniform_(0.5, 1.5)
    runtime = Runtime(copy.deepcopy(model), kernels=layout, release=True)
    assert {plan.layout for plan in runtime.kernels.plans.values()} == {layout}
    [found, *_] = answers = [a.ids for a in generate(runtime, batch, pattern, max_new_tokens=40)]
    for prompt, answer in zip(batch, answers, strict=True):
        assert_most_likely(model, pattern, prompt, answer)
    assert len(set(found)) > 5
