"""Codecs of transformers behind the protocol, with tiny random weights."""

import json

import numpy as np
import pytest
import torch
from transformers import DacConfig, DacModel, MimiConfig, MimiModel

from vita_audio_pl.codecs import Codec, load_codec
from vita_audio_pl.codecs.hf_codec import TransformersCodec
from vita_audio_pl.errors import UserError


@pytest.fixture(scope="module", params=["mimi", "dac"])
def folder(request, tmp_path_factory):
    """A model folder as `save_pretrained` writes it."""
    torch.manual_seed(0)
    if request.param == "mimi":
        config = MimiConfig(
            hidden_size=32,
            intermediate_size=32,
            num_filters=4,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            codebook_size=32,
            codebook_dim=16,
            vector_quantization_hidden_dimension=16,
            num_quantizers=4,
            upsample_groups=32,
        )
        model = MimiModel(config)
        for name, buffer in model.named_buffers():  # codebooks start empty
            if name.endswith("embed_sum"):
                buffer.normal_()
    else:
        model = DacModel(DacConfig(encoder_hidden_size=4, decoder_hidden_size=32, n_codebooks=3, codebook_size=32))
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def codec(folder):
    return TransformersCodec(folder, levels=2)


@pytest.fixture
def wave(codec):
    return 0.1 * np.random.default_rng(0).standard_normal(codec.sample_rate * 2 + 77).astype(np.float32)


def test_it_is_a_codec_and_comes_back_from_its_folder(codec, wave, tmp_path):
    codec.save(tmp_path)
    again = load_codec(tmp_path)
    assert isinstance(again, Codec) and isinstance(again, TransformersCodec)
    assert again.fingerprint == codec.fingerprint
    assert np.array_equal(again.encode([wave])[0], codec.encode([wave])[0])


def test_it_computes_where_and_in_what_type_it_is_told(folder, wave, tmp_path):
    TransformersCodec(folder, levels=2).save(tmp_path)
    moved = load_codec(tmp_path, "cpu", "bfloat16")
    assert {parameter.dtype for parameter in moved.model.parameters()} == {torch.bfloat16}
    [codes] = moved.encode([wave])
    assert codes.dtype == np.int32 and 0 <= codes.min() and codes.max() < moved.codebook_size
    assert moved.decode(codes).dtype == np.float32
    assert moved.build.startswith("transformers ")


def test_frames_become_one_row_of_codes_level_by_level(codec, wave):
    codes = codec.encode([wave])[0]
    frames = -(-len(wave) // codec.samples_per_frame)
    assert codes.shape == (2 * frames,) and codes.dtype == np.int32
    assert (codes[0::2] < 32).all() and (codes[1::2] >= 32).all() and codes.max() < codec.codebook_size == 64
    assert len(np.unique(codes)) > 4
    assert codec.codes_per_second == pytest.approx(2 * codec.sample_rate / codec.samples_per_frame)


def test_decoding_is_the_models_own(codec, wave):
    codes = codec.encode([wave])[0]
    with torch.no_grad():
        rows = torch.from_numpy(codes.astype(np.int64)).reshape(-1, 2).T[None] - torch.tensor([[0], [32]])
        own = codec.model.decode(audio_codes=rows).audio_values.flatten().numpy()
    decoded = codec.decode(codes)
    assert len(decoded) == len(codes) // 2 * codec.samples_per_frame
    np.testing.assert_allclose(decoded[: len(own)], own[: len(decoded)].clip(-1, 1), atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_a_stream_is_as_long_as_the_whole_and_close_to_it(codec, wave, at_once):
    codes, stream = codec.encode([wave])[0], codec.decode_stream()
    parts = [stream.push(codes[start : start + at_once]) for start in range(0, len(codes), at_once)]
    joined, whole = np.concatenate([*parts, stream.finish()]), codec.decode(codes)
    assert len(joined) == len(whole)
    assert np.abs(joined - whole).max() < 0.05 * np.abs(whole).max()


def test_silence_and_an_unfinished_frame(codec):
    assert [len(codec.silence(n)) for n in (0, 1, 6)] == [0, 1, 6]
    assert len(codec.decode(codec.silence(5))) == 2 * codec.samples_per_frame
    assert len(codec.decode(np.empty(0, np.int32))) == 0


@pytest.mark.parametrize("bad", [np.zeros(0, np.float32), np.full(9, np.nan, np.float32), np.zeros((9, 2), np.float32)])
def test_bad_waves_are_refused_by_number(codec, bad):
    with pytest.raises(UserError, match="wave 1 "):
        codec.encode([np.zeros(99, np.float32), bad])


def test_what_does_not_fit_is_refused(codec, folder, tmp_path):
    with pytest.raises(UserError, match="outside the codebook of 64"):
        codec.decode(np.array([0, 64]))
    with pytest.raises(UserError, match="quantisers, so levels=99"):
        TransformersCodec(folder, levels=99)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="not that of a codec known here"):
        TransformersCodec(tmp_path)
    with pytest.raises(UserError, match="config.json is missing"):
        TransformersCodec(tmp_path / "nowhere")
    codec.save(tmp_path)
    header = json.loads((tmp_path / "codec.json").read_text()) | {"fingerprint": "another"}
    (tmp_path / "codec.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="is not the model that"):
        load_codec(tmp_path)
