"""The codec behind the common protocol: folders, rates, long answers."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from vita_audio_pl.codecs import Codec, load_codec, read_audio
from vita_audio_pl.codecs.glm4voice import GROWING_STEPS, GLM4VoiceCodec, StreamOptions
from vita_audio_pl.codecs.glm4voice import codec as codec_module
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import IntervalRatio


@pytest.fixture(scope="module")
def codec(cases) -> GLM4VoiceCodec:
    return GLM4VoiceCodec(cases / "tokenizer", cases / "decoder", flow_steps=2)


def test_it_is_a_codec_and_comes_back_from_its_folder(codec, waves, tmp_path):
    codec.save(tmp_path / "codec")
    again = load_codec(tmp_path / "codec")
    assert isinstance(again, Codec) and isinstance(again, GLM4VoiceCodec)
    assert (again.sample_rate, again.codes_per_second, again.codebook_size) == (16_000, 12.5, 256)
    assert again.fingerprint == codec.fingerprint
    codes = again.encode([waves["w7p3s"]])[0]
    assert codes.dtype == np.int32 and np.array_equal(codes, codec.encode([waves["w7p3s"]])[0])


def test_growing_flow_steps_are_kept_in_the_codec_file_and_make_a_rougher_first_chunk(cases, tmp_path):
    growing = StreamOptions(chunk_codes=(8, 16), flow_steps=GROWING_STEPS)
    GLM4VoiceCodec(cases / "tokenizer", cases / "decoder", stream_options=growing, flow_steps=3).save(tmp_path)
    codec = load_codec(tmp_path)
    assert (codec.stream_options, codec.flow_steps) == (growing, 3)
    steps, codes = [], np.arange(8 + 16 + 2)
    flow, stream = codec.decoder.flow.decoder, codec.decode_stream()
    solve = flow.solve
    flow.solve = lambda *values: (steps.append(values[4]), solve(*values))[1]
    first = stream.push(codes[:8])
    rest = np.concatenate((stream.push(codes[8:]), stream.finish()))
    assert steps == [1, 3, 5] and len(first) > 0
    assert abs(len(first) + len(rest) - len(codec.decode(codes))) <= 1


@pytest.mark.parametrize("mode", ["boost", "turbo"])
def test_every_span_of_a_published_mode_gives_sound(codec, mode):
    stream = codec.decode_stream()
    spans = [stream.push(np.arange(n)) for n in (*IntervalRatio.of(mode).code_runs, 8)]
    assert all(len(sound) > 0 for sound in spans)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_codec_loads_in_half_precision_and_keeps_what_must_be_exact_in_float32(codec, waves, tmp_path, dtype):
    codec.save(tmp_path)
    half = load_codec(tmp_path, "cpu", dtype)
    assert half.tokenizer.encoder.conv1.weight.dtype == half.decoder.flow.dtype == getattr(torch, dtype)
    assert half.decoder.vocoder.conv_pre.weight.dtype == torch.float32
    codes, exact = half.encode([waves["w7p3s"]])[0], codec.encode([waves["w7p3s"]])[0]
    assert (codes == exact).mean() > 0.8
    assert np.isfinite(half.decode(exact[:6])).all()
    with pytest.raises(UserError, match="cannot compute in 'int8'"):
        load_codec(tmp_path, "cpu", "int8")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="there is no GPU here"):
            load_codec(tmp_path, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_hears_and_speaks_as_the_cpu_does(codec, waves, tmp_path, dtype):
    codec.save(tmp_path)
    there = load_codec(tmp_path, "cuda", dtype)
    codes, exact = there.encode([waves["w7p3s"]])[0], codec.encode([waves["w7p3s"]])[0]
    assert (codes == exact).mean() > (0.98 if dtype == "float32" else 0.8)
    for decode in (lambda c: c.decode(exact), lambda c: streamed(c, exact)):
        one, other = decode(there), decode(codec)
        assert len(one) == len(other) and np.isfinite(one).all()
        if dtype == "float32":
            assert np.abs(one - other).max() < 5e-3


def streamed(codec: Codec, codes: np.ndarray) -> np.ndarray:
    stream = codec.decode_stream()
    return np.concatenate([stream.push(codes), stream.finish()])


def test_a_run_that_only_asks_for_sizes_reads_no_weights(cases, tmp_path, codec):
    shutil.copytree(cases / "tokenizer", tmp_path / "tokenizer")
    codec.save(tmp_path / "codec")
    header = json.loads((tmp_path / "codec" / "codec.json").read_text())
    (tmp_path / "codec" / "codec.json").write_text(json.dumps(header | {"tokenizer": "../tokenizer"}))
    weights = tmp_path / "tokenizer" / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    moved = load_codec(tmp_path / "codec")
    assert moved.fingerprint == codec.fingerprint
    weights.write_bytes(whole)
    assert len(moved.silence(3)) == 3


def test_another_tokenizers_weights_are_noticed(cases, tmp_path, codec):
    shutil.copytree(cases / "tokenizer", tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    other = GLM4VoiceCodec(tmp_path / "tokenizer", fingerprint=codec.fingerprint)
    with pytest.raises(UserError, match="not the tokenizer that this codec was saved with"):
        other.silence(1)


def test_waves_come_and_go_at_the_codecs_rate(codec, waves):
    high = codec.at_rate(22_050)
    wave, codes = waves["w7p3s"], np.arange(30) * 8
    spoken, spoken_high = codec.decode(codes), high.decode(codes)
    assert len(spoken_high) == 206 * 256 and len(spoken) == round(206 * 256 * 16_000 / 22_050)
    at_22k = np.interp(np.arange(0, len(wave), 16_000 / 22_050), np.arange(len(wave)), wave).astype(np.float32)
    assert len(high.encode([at_22k])[0]) == len(codec.encode([wave])[0])
    assert high.fingerprint == codec.fingerprint and codec.sample_rate == 16_000


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_a_stream_is_as_long_as_the_whole(codec, rate):
    at_rate, codes = codec.at_rate(rate), np.arange(26) * 9
    stream = at_rate.decode_stream(StreamOptions(chunk_codes=(8, 10), flow_steps=(1,)))
    wave = np.concatenate([stream.push(codes[:9]), stream.push(codes[9:]), stream.finish()])
    assert wave.dtype == np.float32 and abs(len(wave) - len(at_rate.decode(codes))) <= 1


def test_long_answers_are_decoded_in_chunks(codec, monkeypatch):
    monkeypatch.setattr(codec_module, "_LONGEST_WHOLE", 30)
    monkeypatch.setattr(codec_module, "_LONG_FORM", StreamOptions(chunk_codes=(16,)))
    high = codec.at_rate(22_050)
    short, long = high.decode_batch([np.arange(5), np.arange(45)])
    assert len(short) == 34 * 256 and len(long) == 310 * 256


def test_silence_has_as_many_codes_as_asked(codec):
    assert [len(codec.silence(n)) for n in (0, 1, 17)] == [0, 1, 17]


def test_empty_answers_and_empty_calls_are_empty(codec):
    assert len(codec.decode(np.empty(0, np.int64))) == 0
    assert codec.encode([]) == [] and codec.decode_batch([]) == []


def test_without_a_decoder_it_still_encodes(cases, waves):
    codec = GLM4VoiceCodec(cases / "tokenizer")
    assert len(codec.encode([waves["w1s"]])[0]) == 13
    with pytest.raises(UserError, match="has no decoder"):
        codec.decode(np.arange(3))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"tokenizer": 3}, "must be the paths"),
        ({"tokenizer": "nowhere"}, "config.json is missing"),
        ({"sample_rate": 1}, "cannot work at 1 Hz"),
        ({"sample_rate": "16k"}, "must be a whole number"),
        ({"fingerprint": None}, "'fingerprint' a text"),
        ({"flow_steps": 0}, "'flow_steps' is 0"),
        ({"stream": {"chunks": [8]}}, "'stream' is .* it takes join, chunk_codes, flow_steps"),
        ({"stream": {"flow_steps": 3}}, r"flow_steps is 3; \(10,\) is its default"),
        ({"stream": {"chunk_codes": [0]}}, "expected numbers of at least 1"),
    ],
)
def test_a_wrong_codec_file_is_refused(codec, tmp_path, changes, sentence):
    codec.save(tmp_path)
    header = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps(header | changes))
    with pytest.raises(UserError, match=sentence):
        load_codec(tmp_path)


def test_a_decoder_of_another_codebook_is_refused(cases, tmp_path):
    shutil.copytree(cases / "decoder", tmp_path / "decoder")
    path = tmp_path / "decoder" / "config.yaml"
    path.write_text(path.read_text().replace("vocab_size: 256", "vocab_size: 512"))
    with pytest.raises(UserError, match="they do not match"):
        GLM4VoiceCodec(cases / "tokenizer", tmp_path / "decoder")


@pytest.mark.parametrize("rate, channels", [(8_000, 1), (11_025, 2), (44_100, 8), (192_000, 1), (192_000, 8)])
def test_files_of_any_rate_and_channels_have_their_length_in_codes(codec, tmp_path, rate, channels):
    samples = np.clip(
        2 * np.sin(np.arange(rate)[:, None] * np.arange(1, channels + 1) / 30), -1, 1
    )  # one second, clipped
    soundfile.write(tmp_path / "clip.wav", samples, rate)
    assert len(codec.encode([read_audio(tmp_path / "clip.wav", codec.sample_rate)])[0]) == 13


def test_a_file_of_one_sample_a_second_is_refused(codec, tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.zeros(10), 1)
    with pytest.raises(UserError, match="1 Hz is not one of speech"):
        read_audio(tmp_path / "clip.wav", codec.sample_rate)
