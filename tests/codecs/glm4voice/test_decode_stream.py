"""Speech from codes that arrive bit by bit: equal to the published decoder, and our own joins with smaller seams."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vita_audio_pl.codecs.glm4voice import GROWING_STEPS, SpeechDecoder, StreamOptions
from vita_audio_pl.codecs.glm4voice.crossfade_stream import CrossfadeStream
from vita_audio_pl.codecs.glm4voice.published_stream import PublishedStream
from vita_audio_pl.errors import UserError

FRAME = 256


def played(stream, codes: np.ndarray, at_once: int = 1) -> list[np.ndarray]:
    """The chunks of sound that came out, the empty ones left out."""
    chunks = [stream.push(codes[start : start + at_once]) for start in range(0, len(codes), at_once)]
    return [chunk for chunk in [*chunks, stream.finish()] if len(chunk)]


@pytest.fixture
def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, 56)


@pytest.mark.parametrize("at_once", [1, 24])
def test_published_stream_is_the_published_one(decoder, cases, monkeypatch, at_once):
    folder = cases / "stream_cases"
    stored = load_file(folder / "stream_24tok_block10.safetensors")
    tokens = np.array(json.loads((folder / "codes.json").read_text())["stream_24tok_block10"])
    mels = []
    vocode = decoder.wave
    monkeypatch.setattr(decoder, "wave", lambda mel, *rest: (mels.append(mel), vocode(mel, *rest))[1])
    wave = np.concatenate(played(PublishedStream(decoder, StreamOptions(join="published")), tokens, at_once))
    assert wave.shape == (41_984,)
    for number, mel in enumerate(mels):
        torch.testing.assert_close(mel, stored[f"c{number}_hift_mel"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(wave, stored["wave"][0].numpy(), atol=2e-3)
    with_stored_source = [
        decoder.vocoder(stored[f"c{number}_hift_mel"], stored[f"c{number}_hift_source"])[0, : None if last else -FRAME]
        for number, last in enumerate((False, False, True))
    ]
    torch.testing.assert_close(torch.cat(with_stored_source), stored["wave"][0], atol=1e-5, rtol=0)


def test_whole_answers_are_the_published_ones_alone_and_in_a_batch(decoder, cases):
    folder = cases / "stream_cases"
    stored = load_file(folder / "offline_6tok_steps4.safetensors")
    tokens = np.array(json.loads((folder / "codes.json").read_text())["offline_6tok_steps4"])
    waves = decoder.decode_batch([tokens, np.arange(9), tokens, np.empty(0, np.int64)], steps=4)
    assert [len(wave) for wave in waves] == [41 * FRAME, 62 * FRAME, 41 * FRAME, 0]
    for wave in (waves[0], waves[2]):
        np.testing.assert_allclose(wave, stored["wave"][0].numpy(), atol=2e-3)
    np.testing.assert_allclose(waves[1], decoder.decode_batch([np.arange(9)], steps=4)[0], atol=1e-4)


def test_decoding_leaves_torchs_own_random_numbers_alone(decoder):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    decoder.decode_batch([np.arange(3)], steps=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("at_once", [1, 7, 56])
def test_crossfaded_stream_is_as_long_as_the_whole_and_the_same_however_codes_arrive(decoder, codes, at_once):
    wave = np.concatenate(played(CrossfadeStream(decoder, StreamOptions(flow_steps=(2,))), codes, at_once))
    assert len(wave) == decoder.settings.frames(len(codes)) * FRAME
    reference = np.concatenate(played(CrossfadeStream(decoder, StreamOptions(flow_steps=(2,))), codes, 3))
    assert np.array_equal(wave, reference)


@pytest.mark.parametrize("count", [0, 1, 3, 10, 11, 20, 36])
@pytest.mark.parametrize("stream", [CrossfadeStream, PublishedStream])
def test_no_tail_is_lost(decoder, codes, stream, count):
    join = "crossfade" if stream is CrossfadeStream else "published"
    chunks = played(stream(decoder, StreamOptions(join=join, flow_steps=(1,))), codes[:count])
    missing = decoder.settings.frames(count) * FRAME - sum(map(len, chunks))
    # the published join loses a mel frame per chunk from the third on
    assert missing == (FRAME * max(0, -(-count // 10) - 2) if join == "published" else 0)


def test_crossfaded_seams_are_a_third_of_the_published_ones_or_less(decoder, codes, monkeypatch):
    options, codes = {"chunk_codes": (8, 12)}, codes[:50]
    mels, sources = [], []

    def vocode(mel, *rest, original=decoder.wave):
        wave, source = original(mel, *rest)
        mels.append(mel)
        sources.append(source)
        return wave, source

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "wave", vocode)
        chunks = played(PublishedStream(decoder, StreamOptions(join="published", **options)), codes)
    mel = torch.cat([*(mel[..., :-1] for mel in mels[:-1]), mels[-1]], dim=-1)
    source = torch.cat([*(source[..., :-FRAME] for source in sources[:-1]), sources[-1]], dim=-1)
    published = seam_error(chunks, decoder.vocoder(mel, source)[0].numpy())

    stream = CrossfadeStream(decoder, StreamOptions(**options))
    monkeypatch.setattr(stream, "_forget", lambda: None)
    chunks = played(stream, codes)
    ours = seam_error(chunks, decoder.vocoder(stream._mel.values[None], stream._source.values[None, None])[0].numpy())
    assert ours < published / 3


def seam_error(chunks: list[np.ndarray], seamless: np.ndarray) -> float:
    """How far the wave strays, 12 ms to each side of its seams, from one vocoded in one go from the same mel and source.

    Relative to the level there.
    """
    wave, seams = np.concatenate(chunks), np.cumsum([len(chunk) for chunk in chunks])[:-1]
    assert len(wave) == len(seamless) and len(seams) >= 3
    near = np.concatenate([np.arange(seam - FRAME, seam + FRAME) for seam in seams])
    return float(np.sqrt(np.square(wave - seamless)[near].mean() / np.square(seamless)[near].mean()))


def test_a_long_stream_costs_the_same_per_chunk_and_forgets(decoder):
    stream = CrossfadeStream(decoder, StreamOptions(chunk_codes=(10,), flow_steps=(1,), context_codes=20))
    codes, lengths, frames = np.random.default_rng(1).integers(0, 256, 300), [], []
    flow = decoder.flow
    hook = flow.length_regulator.register_forward_hook(lambda module, given, out: frames.append(out.shape[-1]))
    for start in range(0, len(codes), 10):
        stream.push(codes[start : start + 10])
        lengths.append((stream._codes.values.shape[-1], stream._mel.values.shape[-1], len(stream._mel_noise._values)))
    hook.remove()
    assert max(frames[5:]) <= max(frames[:5]) + 1
    assert np.array(lengths[5:]).max(axis=0).tolist() <= (np.array(lengths[:5]).max(axis=0) + 2).tolist()


def test_flow_steps_and_chunks_grow_as_asked(decoder, codes):
    asked = []
    solve = decoder.flow.decoder.solve
    decoder.flow.decoder.solve = lambda *rest: (asked.append(rest[4]), solve(*rest))[1]
    try:
        stream = CrossfadeStream(decoder, StreamOptions(chunk_codes=(4, 6, 8), flow_steps=GROWING_STEPS))
        chunks = played(stream, codes)
    finally:
        del decoder.flow.decoder.solve
    assert asked == [1, 3, 5, 7, 9, 10, 10, 10]
    assert sum(map(len, chunks)) == decoder.settings.frames(56) * FRAME


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"join": "overlap"}, "join is 'overlap'; choose crossfade or published"),
        ({"chunk_codes": ()}, "chunk_codes"),
        ({"flow_steps": (0,)}, "flow_steps"),
        ({"fade_samples": -1}, "must not be negative"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        StreamOptions(**options)


def test_a_published_chunk_too_small_for_its_overlap_is_refused(decoder):
    with pytest.raises(UserError, match="a first chunk of 5 codes has 34 mel frames"):
        PublishedStream(decoder, StreamOptions(join="published", chunk_codes=(5,)))


@pytest.mark.parametrize("bad", [np.array([3, 256]), np.array([-1]), np.array([0.5]), np.zeros((2, 2), int)])
def test_codes_outside_the_codebook_are_refused(decoder, bad):
    for take in (lambda: decoder.decode_batch([bad]), lambda: CrossfadeStream(decoder, StreamOptions()).push(bad)):
        with pytest.raises(UserError, match="code"):
            take()


def test_bfloat16_flow_stays_close(cases, decoder):
    half = SpeechDecoder.load(cases / "decoder").to(dtype=torch.bfloat16)
    codes = torch.arange(6)[None]
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    with torch.no_grad():
        mels = [d.mel(codes, g, steps=2) for d, g in zip((half, decoder), generators, strict=True)]
    assert mels[0].dtype == torch.float32
    assert (mels[0] - mels[1]).square().mean().sqrt() < 0.03 * mels[1].std()
    assert half.vocoder.conv_pre.weight.dtype == torch.float32
