"""A pass with fixed shapes or compiled pieces gives what a plain pass gives."""

import pytest
import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, generate
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.graphs import StaticRows
from vita_audio_pl.inference.products import PackedProduct, PlainProduct, product
from vita_audio_pl.inference.rows import Span
from vita_audio_pl.interleave import DecodePattern


@torch.inference_mode()
@pytest.mark.parametrize("spans", [[Span(0, 0, 9)], [Span(0, 4, 5), Span(1, 7, 8)], [Span(1, 3, 6), Span(2, 8, 11)]])
def test_a_rounded_up_context_changes_nothing(runtime, prompts, spans):
    results = []
    for wrap in (lambda rows, cache: rows, lambda rows, cache: StaticRows(rows, cache.capacity).fresh()):
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


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["vanilla", "boost", "turbo"])
def test_cuda_graphs_write_the_same_tokens(tiny_model, prompts, mode):
    runtime, pattern = Runtime(tiny_model().cuda()), DecodePattern.of(mode)
    [prompt] = prompts(12)
    [plain] = generate(runtime, [prompt], pattern, max_new_tokens=60)
    decoder = Decoder(runtime, capacity=72, graphs=True)
    from vita_audio_pl.inference.sequence import Options

    sequence = decoder.open(prompt, Options(pattern, 60))
    while not sequence.finished:
        decoder.step()
    assert sequence.result().ids == plain.ids


@pytest.mark.slow
def test_compiled_pieces_write_the_same_tokens(tiny_model, prompts):
    model, batch = tiny_model(n_heads=1), prompts(5)
    plain = generate(Runtime(model), batch, DecodePattern.of([1, 1]), max_new_tokens=8)
    compiled = generate(Runtime(model, compile=True), batch, DecodePattern.of([1, 1]), max_new_tokens=8)
    assert [a.ids for a in compiled] == [a.ids for a in plain]


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("biased", [True, False])
def test_packed_products_are_products(rows, biased):
    random = torch.Generator().manual_seed(0)
    weight, x = torch.randn(512, 256, generator=random), torch.randn(rows, 256, generator=random)
    bias = torch.randn(512, generator=random) if biased else None
    packed = product(weight, bias)
    assert isinstance(packed, PackedProduct) and isinstance(product(weight[:32]), PlainProduct)
    torch.testing.assert_close(packed(x), torch.nn.functional.linear(x, weight, bias), atol=1e-4, rtol=1e-4)
    assert packed(x).is_contiguous()
    with torch.inference_mode():
        assert packed(x).shape == (rows, 512)


def test_a_large_model_decodes_through_packed_weights_to_the_training_function(tiny_model, prompts):
    """The same check as for tiny models, once, where every matrix is large enough to be packed."""
    from transformers import Qwen2Config

    from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    model = SpeechLM(SpeechLMConfig(Qwen2Config(vocab_size=512, **sizes, **heads), 2)).eval()
    batch, pattern = prompts(9, 4), DecodePattern.of([1, 3, 2, 2])
    packed = generate(Runtime(model), batch, pattern, max_new_tokens=40)
    plain = generate(Runtime(model, pack=False), batch, pattern, max_new_tokens=40)
    assert [a.ids for a in packed] == [a.ids for a in plain]
