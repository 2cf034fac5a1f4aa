"""Waves to codes: the published implementation's numbers, segmentation, batches, bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.codecs.glm4voice.nearest import assert_same_codes, nearness
from tests.margins import assert_same_choices
from vita_audio_pl.codecs.glm4voice.settings import TokenizerSettings
from vita_audio_pl.codecs.glm4voice.tokenizer import PIECE, SpeechTokenizer, plan_batches
from vita_audio_pl.codecs.glm4voice.whisper_vq import WhisperVQEncoder
from vita_audio_pl.errors import UserError


def varied(tokenizer: SpeechTokenizer, **changes) -> SpeechTokenizer:
    """The same weights under other settings; layers that are missing are copies of the last."""
    settings = replace(tokenizer.encoder.settings, **changes)
    weights = tokenizer.encoder.state_dict()
    for layer in range(tokenizer.encoder.settings.quantize_position, settings.quantize_position):
        weights |= {
            k.replace("layers.1", f"layers.{layer}"): v for k, v in weights.items() if k.startswith("layers.1.")
        }
    encoder = WhisperVQEncoder(settings)
    encoder.load_state_dict(weights)
    return SpeechTokenizer(encoder)


@pytest.fixture(params=["a", "b"])
def variant(request, tokenizer):
    return request.param, {"a": tokenizer, "b": varied(tokenizer, block=16)}[request.param]


@pytest.mark.parametrize("name", ["w1s", "w7p3s"])
def test_states_and_codes_are_the_published_ones(variant, name, waves, cases):
    letter, tokenizer = variant
    wave, stored = waves[name], load_file(cases / "tokenizer_cases" / f"{letter}_{name}.safetensors")
    padded = np.pad(wave, (0, -len(wave) % 1280))
    with torch.no_grad():
        features = tokenizer.features(torch.from_numpy(padded)[None])
        hidden = tokenizer.encoder.hidden(features, torch.tensor([-(-len(wave) // 160)]))
    torch.testing.assert_close(hidden[0], stored["hidden_at_quantisation"], atol=2e-5, rtol=0)
    assert_same_choices(
        tokenizer.encoder.quantised(hidden)[0],
        stored["quantized_token_ids_unmasked"],
        nearness(hidden[0], tokenizer.encoder.codebook.weight),
    )
    expected = json.loads((cases / "tokenizer_cases" / "expected.json").read_text())[letter][name]
    assert_same_codes(tokenizer, wave, tokenizer.encode([wave])[0], expected)


def test_max_pooling_gives_the_published_codes(tokenizer, waves, cases):
    expected = json.loads((cases / "tokenizer_cases" / "expected.json").read_text())["d"]
    pooled = varied(tokenizer, block=16, pooling_type="max")
    for name, codes in zip(waves, pooled.encode(list(waves.values())), strict=True):
        assert_same_codes(pooled, waves[name], codes, expected[name])


@torch.no_grad()
def test_layers_after_the_pooling_see_no_later_block_either(tokenizer):
    encoder = varied(tokenizer, pooling_position=1, quantize_position=3, block=32).encoder
    features = torch.randn(1, 128, 256)
    changed = features.clone()
    changed[..., 128:] += 1.0  # from the third block on: 32 positions are 64 frames and 8 codes
    states, other = (encoder.hidden(x, torch.tensor([256])) for x in (features, changed))
    assert torch.equal(states[:, :16], other[:, :16])
    assert ((states != other).any(dim=-1))[:, 16:].all()


def test_features_are_whispers(tokenizer, waves, cases):
    stored = load_file(cases / "tokenizer_cases" / "features_w1s.safetensors")["input_features"]
    features = tokenizer.features(torch.from_numpy(np.pad(waves["w1s"], (0, 640)))[None])
    torch.testing.assert_close(features[0], stored, atol=1e-3, rtol=0)


def test_a_padded_batch_gives_each_clip_the_codes_it_has_alone(variant, waves, cases):
    letter, tokenizer = variant
    expected = json.loads((cases / "tokenizer_cases" / "expected.json").read_text())[letter]
    padded_together = tokenizer.encode_pieces([waves["w1s"], waves["w7p3s"]])
    by_likeness = tokenizer.encode([waves["w1s"], waves["w7p3s"], waves["w1s"]])
    for name, codes in zip(["w1s", "w7p3s", "w1s", "w7p3s", "w1s"], [*padded_together, *by_likeness], strict=True):
        assert_same_codes(tokenizer, waves[name], codes, expected[name])


def test_padded_hidden_states_are_the_published_ones(tokenizer, waves, cases):
    stored = load_file(cases / "tokenizer_cases" / "a_batch.safetensors")
    padded = np.zeros((2, 92 * 1280), np.float32)
    for row, name in zip(padded, ("w1s", "w7p3s"), strict=True):
        row[: len(waves[name])] = waves[name]
    with torch.no_grad():
        hidden = tokenizer.encoder.hidden(tokenizer.features(torch.from_numpy(padded)), torch.tensor([100, 730]))
    torch.testing.assert_close(hidden, stored["hidden_at_quantisation"], atol=2e-5, rtol=0)
    assert_same_choices(
        tokenizer.encoder.quantised(hidden),
        stored["quantized_token_ids_unmasked"],
        nearness(hidden.flatten(0, 1), tokenizer.encoder.codebook.weight),
    )


def test_long_audio_is_cut_at_30_seconds_and_joined(tokenizer, waves):
    wave = np.tile(waves["w7p3s"], 5)[: PIECE + 20_000]
    whole, pieces = tokenizer.encode([wave])[0], tokenizer.encode([wave[:PIECE], wave[PIECE:]])
    assert len(whole) == 375 + 16
    assert_same_codes(tokenizer, wave, whole, np.concatenate(pieces))


def test_ten_hours_are_encoded_in_batches_of_bounded_size():
    batches = list(plan_batches([10 * 3600 * 16_000, 16_000, 480_001], batch_seconds=240))
    assert sum(piece.samples for batch in batches for piece in batch) == 10 * 3600 * 16_000 + 16_000 + 480_001
    assert all(len(batch) * batch[0].samples <= 240 * 16_000 for batch in batches)
    short = [piece for batch in batches for piece in batch if piece.samples < PIECE]
    assert {(piece.wave, piece.samples) for piece in short} == {(1, 16_000), (2, 1)}
    assert all(piece.samples >= 0.8 * batch[0].samples for batch in batches for piece in batch)


def test_one_sample_is_one_code_and_loud_audio_is_taken_as_it_is(tokenizer, waves):
    one, clipped = tokenizer.encode([np.ones(1, np.float32), np.clip(30 * waves["w1s"], -1, 1)])
    assert len(one) == 1 and len(clipped) == 13


@pytest.mark.parametrize(
    "wave, sentence",
    [
        (np.zeros(0, np.float32), "wave 1 is empty"),
        (np.array([0.0, np.nan], np.float32), "wave 1 holds samples that are NaN"),
        (np.array([0.0, np.inf]), "wave 1 holds samples that are NaN or infinite"),
        (np.zeros((16_000, 8), np.float32), "wave 1 has shape .* one channel"),
        (np.zeros(16_000, np.int16), "wave 1 holds int16 samples"),
    ],
)
def test_bad_waves_are_refused_by_number(tokenizer, wave, sentence):
    with pytest.raises(UserError, match=sentence):
        tokenizer.encode([np.zeros(1280, np.float32), wave])


def test_bfloat16_quantises_in_float32(tokenizer, waves, cases):
    half = SpeechTokenizer.load(cases / "tokenizer").to(dtype=torch.bfloat16)
    codes, exact = half.encode([waves["w7p3s"]])[0], tokenizer.encode([waves["w7p3s"]])[0]
    assert (codes == exact).mean() > 0.8
    hidden = torch.randn(1, 5, 64, dtype=torch.bfloat16)
    table = nearness(hidden[0], half.encoder.codebook.weight)
    assert_same_choices(half.encoder.quantised(hidden)[0], table.argmax(dim=-1), table)


def test_real_size_has_the_public_names_shapes_and_number_of_values(real_layout, tmp_path):
    configs = json.loads((real_layout / "real_configs.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(configs["glm-4-voice-tokenizer/config.json"]))
    with torch.device("meta"):
        encoder = WhisperVQEncoder(TokenizerSettings.read(tmp_path / "config.json"))
    shapes = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert shapes == json.loads((real_layout / "whisper_vq_keys.json").read_text())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 343_599_360
    assert sum(tensor.numel() for tensor in encoder.state_dict().values()) == 364_587_264


@pytest.mark.parametrize(
    ("seconds", "passes"), [([1] * 16, 1), ([1, 2, 3, 4, 5, 6, 7, 8], 6)], ids=["one-second clips", "all lengths"]
)
def test_a_batch_takes_few_passes_and_little_padding(tokenizer, seconds, passes):
    random, seen = np.random.default_rng(0), []
    clips = [0.1 * random.standard_normal(n * 16_000).astype(np.float32) for n in seconds]
    hook = tokenizer.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    tokenizer.encode(clips)
    hook.remove()
    frames = sum(items * length for items, _, length in seen)
    assert len(seen) == passes and frames <= 1.1 * 100 * sum(seconds)
