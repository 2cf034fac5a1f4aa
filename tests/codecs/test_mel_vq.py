"""The codec keeps speech intelligible at 12.5 codes/s, is exact about lengths, and streams without seams."""

import itertools
import json
import math
import os
from dataclasses import asdict, replace

import jiwer
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from tests.margins import assert_same_choices
from vita_audio_pl.codecs import Codec, MelVQ, MelVQConfig, context_decoder, load_codec, mel_vq, read_audio, spectral
from vita_audio_pl.codecs.mel_vq import _log_spectra
from vita_audio_pl.codecs.spectral import invert_mel, mel_filters, mel_frames
from vita_audio_pl.codecs.unit_selection import BOUNDARY, Trail, Units
from vita_audio_pl.errors import UserError

RATE = 16_000


def nearness(codec: MelVQ, wave: np.ndarray) -> torch.Tensor:
    """Negative squared distances `(codes, codebook size)` of a wave's frames from the centroids."""
    mean, basis, centroids = (codec._weights[name].double() for name in ("mean", "basis", "centroids"))
    whole = np.pad(wave, (0, -len(wave) % codec.config.samples_per_code))
    points = log_mel(whole, codec.config.hop, codec.config.quietest).double().view(-1, len(mean)) - mean
    return -(torch.cdist(points @ basis, centroids) ** 2)


def log_mel(wave: np.ndarray, hop: int = 128, quietest: float = 1e-4) -> torch.Tensor:
    filters = mel_filters(RATE, 4 * hop, 80)
    return mel_frames([torch.from_numpy(wave[: len(wave) // hop * hop])], hop, filters).clamp(min=quietest).log()


def test_it_offers_what_the_protocol_asks(speech):
    codec = speech.codec
    assert isinstance(codec, Codec)
    assert (codec.sample_rate, codec.codes_per_second, codec.codebook_size) == (RATE, 12.5, 512)


def test_words_survive_the_codec(speech):
    from vita_audio_pl.evaluation.judges.pocketsphinx import PocketsphinxJudge

    judge = PocketsphinxJudge(speech.world.grammar)
    texts, waves = list(speech.held_out), list(speech.held_out.values())
    again = speech.codec.decode_batch(speech.codec.encode(waves))
    on_source, on_codec = judge.transcribe(waves, RATE), judge.transcribe(again, RATE)
    noise = [np.random.default_rng(0).normal(0, 0.05, len(wave)).astype(np.float32) for wave in waves[:5]]
    assert jiwer.wer(texts, on_source) <= 0.02
    assert jiwer.wer(texts, on_codec) <= 0.10
    half = len(texts) // 2  # neighbours share words
    assert jiwer.wer(texts[half:] + texts[:half], on_source) >= 0.6
    assert jiwer.wer(texts[:5], judge.transcribe(noise, RATE)) >= 0.9


def test_encoding_a_second_takes_a_fiftieth_of_what_one_core_multiplies_in_a_second(speech):
    """At 5 billion products a second, without the Fourier transforms; `benchmark what=data` takes the time."""
    with FlopCounterMode(display=False) as counter:
        speech.codec.encode(speech.waves[:100])
    seconds = sum(map(len, speech.waves[:100])) / RATE
    assert 0 < counter.get_total_flops() / 2 / seconds <= 5e9 / 50


def test_a_batch_gives_what_each_wave_gives_alone(speech):
    waves = speech.waves[:12]
    codes = speech.codec.encode(waves)
    for wave, batched in zip(waves, codes, strict=True):
        assert_same_choices(batched, speech.codec.encode([wave])[0], lambda wave=wave: nearness(speech.codec, wave))
    for batched, one in zip(speech.codec.decode_batch(codes), codes, strict=True):
        np.testing.assert_allclose(batched, speech.codec.decode(one), atol=1e-3)


@pytest.mark.parametrize(("samples", "codes"), [(1, 1), (1279, 1), (1280, 1), (1281, 2), (12_800, 10)])
def test_audio_is_filled_up_to_whole_codes(speech, samples, codes):
    wave = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    (encoded,) = speech.codec.encode([wave])
    assert encoded.dtype == np.int32 and len(encoded) == codes
    assert len(speech.codec.decode(encoded)) == codes * 1280


def test_silence_is_silent_between_words_too(speech):
    codec = speech.codec
    assert np.abs(codec.decode(codec.silence(10))).max() < 1e-3
    words = codec.encode([speech.waves[0]])[0]
    wave = codec.decode(np.concatenate([codec.silence(5), words]))
    assert np.abs(wave[: 4 * 1280]).max() < 2e-3 < np.abs(wave[5 * 1280 :]).max()
    assert len(codec.silence(0)) == 0


def test_a_code_is_heard_in_the_context_of_those_before_it_and_of_none_after(speech):
    codec, (codes,) = speech.codec, speech.codec.encode([speech.waves[0]])
    row = torch.from_numpy(codes).long()
    whole = codec._spectra(row)[0].view(len(codes), -1)
    decoder = codec._decoder
    as_trained = decoder.mean + decoder(row[None], torch.ones(1, len(row)))[0] @ decoder.basis.T
    torch.testing.assert_close(decoder.spectra(decoder.components(row)), as_trained, atol=1e-4, rtol=1e-4)
    other = row.clone()
    other[10:] = row.flip(0)[10:]
    torch.testing.assert_close(codec._spectra(other)[0].view(len(codes), -1)[:10], whole[:10])
    alone = codec._spectra(row[10:11])[0].view(-1)
    assert (alone - whole[10]).abs().mean() > 0.05 * whole[10].mean()
    for chunk in (1, 3, 8):
        parts, before = [], None
        for at in range(0, len(row), chunk):
            part, before = codec._spectra(row[at : at + chunk], before)
            parts.append(part)
        torch.testing.assert_close(torch.cat(parts).view(len(codes), -1), whole, atol=1e-4, rtol=1e-3)


def test_speech_that_was_heard_comes_back(speech):
    """Whatever was kept is found again, or what has the same thirteen codes up to there, and the network is not asked."""
    units, kept = speech.codec._units, speech.codec._weights["units.codes"]
    starts = torch.nonzero(kept == BOUNDARY)[:, 0].tolist()
    for begin, end in itertools.pairwise([*starts, len(kept)]):
        trail = Trail()
        for at in range(begin + 1, end):
            _, trail = units.chosen(kept[at : at + 1].long(), lambda: pytest.fail("the network was asked"), trail)
            reach = min(13, at - begin)
            assert torch.equal(kept[trail.place + 1 - reach : trail.place + 1], kept[at + 1 - reach : at + 1])


@pytest.mark.parametrize("seed", range(20))
def test_of_all_speech_that_has_the_longest_context_the_next_or_the_nearest_is_taken(seed):
    """Against a search through all places, of streams that come in pieces."""
    random, n_codes = np.random.default_rng(seed), 4
    rows = [torch.from_numpy(random.integers(0, n_codes, int(random.integers(1, 40)))) for _ in range(12)]
    held = Units.weights(rows, [torch.from_numpy(random.normal(size=(len(row), 5))).float() for row in rows])
    units, sounds = Units(**held), held["parts"] * held["scale"]
    places = held["codes"].tolist()

    def same(place: int, said: list[int]) -> int:
        for n in range(13):
            there, ours = places[place - n], said[-1 - n] if n < len(said) else BOUNDARY
            if there != ours:
                return n
            if ours == BOUNDARY:
                break
        return 13

    stream, otherwise = random.integers(0, n_codes + 1, 60).tolist(), torch.full((60, 5), 9.0)
    trail, made, wanted, followed = Trail(), [], [], -1
    for at in range(0, 60, 7):
        part, trail = units.chosen(torch.tensor(stream[at : at + 7]), lambda at=at: otherwise[at : at + 7], trail)
        made.append(part)
    for at in range(60):
        lengths = {place: same(place, stream[: at + 1]) for place in range(len(places)) if places[place] == stream[at]}
        longest = max(lengths.values(), default=0)
        best = [place for place, length in lengths.items() if length == longest]
        if longest < 3:
            followed = -1
        elif followed < 0 or followed + 1 not in best:
            off = [float((sounds[place - 1] - wanted[-1]).square().sum()) if wanted else 0.0 for place in best]
            followed = best[int(np.argmin(off))]
        else:
            followed += 1
        wanted.append(otherwise[at] if followed < 0 else sounds[followed])
    assert torch.equal(torch.cat(made), torch.stack(wanted))
    assert any((row == 9).all() for row in wanted) and not all((row == 9).all() for row in wanted)


def test_context_brings_the_spectra_nearer_to_the_speech(speech):
    """On sentences that were not fitted: what the network says, against what each code says alone."""
    codec, errors = speech.codec, torch.zeros(2)
    rows = speech.world.samples("asr", "test").read_text().splitlines()
    for wave in [read_audio(speech.world.folder / json.loads(row)["audios"][0], RATE) for row in rows]:
        (codes,) = codec.encode([wave])
        row = torch.from_numpy(codes).long()
        wanted = _log_spectra(torch.from_numpy(np.pad(wave, (0, -len(wave) % 1280))), codec.config)
        decoder = codec._decoder
        alone = decoder.mean + decoder.table[row] @ decoder.basis.T
        for n, said in enumerate((decoder.spectra(decoder.components(row)), alone)):
            errors[n] += (said - wanted).square().sum()
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_streamed_speech_has_no_seams_and_no_lost_tail(speech, chunk):
    flux, distances = [], []
    for wave in list(speech.held_out.values()):
        (codes,) = speech.codec.encode([wave])
        whole, stream = speech.codec.decode(codes), speech.codec.decode_stream()
        chunks = [stream.push(codes[i : i + chunk]) for i in range(0, len(codes), chunk)]
        chunks.append(stream.finish())
        streamed = np.concatenate(chunks)
        assert len(streamed) == len(whole)
        assert all(len(piece) == chunk * 1280 for piece in chunks[1:-2]), "a steady stream gives steady pieces"
        distances.append(float((log_mel(streamed) - log_mel(whole)).abs().mean()))
        seams = np.cumsum([len(piece) for piece in chunks[:-1]]) // 128
        near = sorted(
            {int(seam) + step for seam in seams for step in (-2, -1, 0, 1)} & set(range(len(whole) // 128 - 1))
        )
        rises = [torch.diff(log_mel(w), dim=0).clamp(min=0).mean(dim=1)[near].mean() for w in (streamed, whole)]
        flux.append(torch.stack(rises) * len(near))
    assert np.mean(distances) < 0.2  # codes themselves lie 0.4 away from the speech
    streamed, whole = torch.stack(flux).sum(dim=0)  # pooled: a chunk of eight leaves an utterance two or three seams
    assert streamed / whole < 1.15, "more spectral flux at the seams than where whole decoding has none"


def test_a_finished_stream_takes_no_more_and_an_unused_one_is_empty(speech):
    stream = speech.codec.decode_stream()
    assert len(stream.push(np.zeros(0, np.int32))) == 0 and len(stream.finish()) == 0
    with pytest.raises(ValueError, match="finished"):
        stream.push(np.zeros(1, np.int32))


def test_the_same_audio_and_seed_give_the_same_codec(speech):
    config = MelVQConfig(codebook_size=64)
    waves = speech.waves[:60]
    codec = MelVQ.fit(waves, config, seed=3)
    assert MelVQ.fit(waves, config, seed=3).fingerprint == codec.fingerprint
    assert MelVQ.fit(waves, config, seed=4).fingerprint != codec.fingerprint


def test_half_of_the_codes_are_fitted_to_the_voice_that_is_spoken_in(speech):
    config = MelVQConfig(codebook_size=64, decoder_width=8, decoder_components=8)
    own, others = list(speech.held_out.values()), speech.waves[:60]
    codec = MelVQ.fit(others, config, seed=3, spoken=own)
    alone = MelVQ.fit(others, replace(config, codebook_size=32), seed=3)
    used = [np.unique(np.concatenate(codec.encode(waves))) for waves in (own, others)]
    assert len(used[0]) > 24 and np.mean(used[0] < 32) > 0.6 and np.mean(used[1] >= 32) > 0.6
    assert codec.codebook_size == 2 * alone.codebook_size
    with pytest.raises(UserError, match="too few for 32 codes; give at least 5 s"):
        MelVQ.fit(others, config, spoken=own[:1])


def test_part_of_the_spread_that_least_squares_take_is_given_back(speech, monkeypatch):
    """By components: 0.6 of what a fit without it leaves out, and the same sounds on average."""

    def made(spread):
        monkeypatch.setattr(context_decoder, "_SPREAD", spread)
        config = MelVQConfig(codebook_size=64, decoder_width=8, decoder_components=8)
        codec = MelVQ.fit(speech.waves[:60], config, seed=3)
        waves = mel_vq._padded(speech.waves[:60], config)
        decoder, codes = codec._decoder, [torch.from_numpy(row).long() for row in codec.encode(speech.waves[:60])]
        true = torch.cat([(mel_vq._log_spectra(wave, config) - decoder.mean) @ decoder.basis for wave in waves])
        return true, torch.cat([decoder(row[None], torch.ones(1, len(row)))[0] for row in codes])

    (true, dull), (_, lively) = made(0.0), made(0.6)
    lost = true.std(dim=0) / dull.std(dim=0)
    assert (lost > 1.01).any() and (lost < context_decoder._MOST_LOST).all()
    torch.testing.assert_close(lively.std(dim=0), dull.std(dim=0) * (1 + 0.6 * (lost - 1)), rtol=1e-3, atol=1e-4)
    center = true.mean(dim=0)
    torch.testing.assert_close(lively - center, (dull - center) * (1 + 0.6 * (lost - 1)), rtol=1e-3, atol=1e-3)


def test_codes_tell_what_is_said_and_not_how_high(speech):
    """The harmonics of a voice are ripples in its log-mel frames, which the projection does not see; its envelope it does."""
    basis = speech.codec._weights["basis"].view(10, 80, -1)
    harmonics = torch.cos(math.pi / 80 * (torch.arange(80) + 0.5) * 40)
    envelope = torch.cos(math.pi / 80 * (torch.arange(80) + 0.5) * 2)
    seen = [(wave[:, None] * basis.mean(dim=0)).sum(dim=0).norm() for wave in (harmonics, envelope)]
    assert seen[0] < 1e-4 * seen[1]
    flat = speech.codec._weights["basis"]
    torch.testing.assert_close(flat.T @ flat, torch.eye(flat.shape[1]), atol=1e-4, rtol=0)


def test_a_saved_codec_comes_back_the_same(speech, tmp_path):
    speech.codec.save(tmp_path / "codec")
    rights = {path.stat().st_mode for path in (tmp_path / "codec").iterdir()}
    assert len(rights) == 1, "whoever may read the one file may read the other"
    loaded = load_codec(tmp_path / "codec")
    assert loaded.fingerprint == speech.codec.fingerprint
    codes = loaded.encode(speech.waves[:2])
    np.testing.assert_array_equal(codes[1], speech.codec.encode(speech.waves[:2])[1])
    with open(tmp_path / "codec/codec.safetensors", "r+b") as file:  # as a copy of another one over it does
        file.write(bytes(os.stat(file.fileno()).st_size))
    np.testing.assert_array_equal(loaded.encode(speech.waves[:1])[0], codes[0])
    np.testing.assert_array_equal(loaded.decode(codes[0]), speech.codec.decode(codes[0]))


def test_a_folder_of_an_earlier_version_is_read_as_it_was_meant(speech, tmp_path):
    new = speech.codec
    config = replace(new.config, decoder_width=0, decoder_components=0)
    old = MelVQ(config, {name: new._weights[name] for name in ("mean", "basis", "centroids")})
    old.save(tmp_path)
    _edit(tmp_path, lambda header: header.pop("format"))
    header = json.loads((tmp_path / "codec.json").read_text())
    assert set(header["config"]) == set(asdict(config)) - {"decoder_width", "decoder_components"}
    with safe_open(tmp_path / "codec.safetensors", "pt") as file:
        assert set(file.keys()) == {"mean", "basis", "centroids"}
    loaded = load_codec(tmp_path)
    assert loaded.fingerprint == old.fingerprint != new.fingerprint
    wave = speech.waves[0]
    (codes,) = loaded.encode([wave])
    np.testing.assert_array_equal(codes, new.encode([wave])[0])
    spectra = loaded._spectra(torch.from_numpy(codes).long())[0].view(len(codes), -1)
    for code in np.unique(codes):
        assert len(torch.unique(spectra[codes == code], dim=0)) == 1, "a code sounds alike everywhere"
    mel = spectra.view(-1, config.bins) / spectral.hann(config.hop).sum() @ mel_filters(RATE, 512, 80)
    heard, said = mel.clamp(min=1e-4).log()[: len(wave) // 128], log_mel(wave)
    envelopes = spectral.cosines(80, 16)  # which codes are fitted to
    assert ((heard - said) @ envelopes @ envelopes.T).abs().mean() < 0.6


def test_a_codec_of_a_version_that_kept_no_speech_says_what_its_network_does(speech, tmp_path):
    new = speech.codec
    old = MelVQ(new.config, {name: weight for name, weight in new._weights.items() if not name.startswith("units.")})
    old.save(tmp_path)
    _edit(tmp_path, lambda header: header.update(format=2))
    (codes,) = new.encode(list(speech.held_out.values())[:1])
    loaded, row = load_codec(tmp_path), torch.from_numpy(codes).long()
    assert loaded.fingerprint == old.fingerprint != new.fingerprint
    decoder = new._decoder
    made = decoder.spectra(decoder.components(row)).exp().view(-1, new.config.bins) * spectral.hann(128).sum()
    found = loaded._spectra(row)[0]
    torch.testing.assert_close(found[found > 0], made[found > 0])
    assert (found > 0).any() and not torch.equal(new._spectra(row)[0], found)


def _edit(folder, change):
    path = folder / "codec.json"
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))


def _change(folder, name, change):
    path = folder / "codec.safetensors"
    weights = load_file(path)
    save_file(weights | {name: change(weights[name]).contiguous()}, path)


def _flip_byte(folder):
    path = folder / "codec.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "codec.json").unlink(), "it has no codec.json"),
        (lambda folder: (folder / "codec.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / "codec.json").write_text("[]"), "must hold a JSON object"),
        (lambda folder: _edit(folder, lambda h: h.update(name="mystery")), "'mystery', which is not known"),
        (lambda folder: _edit(folder, lambda h: h["config"].update(hops=1)), "must have exactly the keys"),
        (lambda folder: _edit(folder, lambda h: h["config"].update(hop=0)), "hop must be a whole number"),
        (lambda folder: _edit(folder, lambda h: h["config"].update(decoder_width=0)), "must both be 0, or neither"),
        (lambda folder: _edit(folder, lambda h: h["config"].update(decoder_width=64)), "of this configuration holds"),
        (lambda folder: _edit(folder, lambda h: h["config"].pop("decoder_width")), "must have exactly the keys"),
        (lambda folder: _edit(folder, lambda h: h.update(format=4)), "has format 4, this version reads up to 3"),
        (lambda folder: _edit(folder, lambda h: h["config"].update(codebook_size=256)), "of this configuration holds"),
        (lambda folder: _edit(folder, lambda h: h.update(extra=1)), "does not describe a mel_vq codec"),
        (
            lambda folder: _change(folder, "units.codes", lambda codes: codes.fill_(512)),
            "codes that the codebook does not",
        ),
        (lambda folder: _change(folder, "units.parts", lambda parts: parts[1:]), "of this configuration holds"),
        (lambda folder: (folder / "codec.safetensors").unlink(), "is not complete"),
        (lambda folder: (folder / "codec.safetensors").write_bytes(b"x" * 100), "is damaged"),
        (_flip_byte, "another fingerprint"),
    ],
)
def test_a_damaged_codec_folder_is_refused_in_a_sentence(speech, tmp_path, damage, reason):
    speech.codec.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=reason):
        load_codec(tmp_path)


def test_bad_waves_codes_and_settings_are_refused(speech):
    good = np.zeros(2000, np.float32)
    for bad, reason in [
        (np.zeros(0), "not empty"),
        (np.zeros((2, 10)), "one channel"),
        (np.full(9, np.nan), "NaN"),
    ]:
        with pytest.raises(UserError, match=f"wave 1.*{reason}"):
            speech.codec.encode([good, bad])
    for codes in (np.array([512]), np.array([-1]), np.array([0.5]), np.zeros((1, 2), int)):
        with pytest.raises(ValueError, match="codes must"):
            speech.codec.decode(codes)
    with pytest.raises(UserError, match=r"too few for 512 codes; give at least 82 s"):
        MelVQ.fit([good])
    small = MelVQConfig(codebook_size=2, decoder_width=4, decoder_components=4)
    with pytest.raises(UserError, match="as in silence"):
        MelVQ.fit([np.zeros(2 * RATE, np.float32)], small)
    with pytest.raises(UserError, match="cannot be shared by two"):
        MelVQ.fit(speech.waves[:2], replace(small, codebook_size=1), spoken=speech.waves[:2])
    for wrong in (
        {"frames_per_code": 3},
        {"hop": 0},
        {"hop": 65},
        {"hop": 12.5},
        {"quietest": 0.0},
        {"pca_size": 10_000},
        {"decoder_components": 2571},
    ):
        with pytest.raises(ValueError, match="mel_vq"):
            MelVQConfig(**wrong)
    assert speech.codec.encode([]) == [] and speech.codec.decode_batch([]) == []
    assert len(speech.codec.decode(np.zeros(0, np.int32))) == 0


def test_the_caller_keeps_its_number_of_threads(speech):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    speech.codec.encode(speech.waves[:1])
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_mel_bands_cover_the_spectrum_and_can_be_inverted():
    filters = mel_filters(RATE, 512, 80)
    assert (filters >= 0).all() and torch.allclose(filters.sum(dim=0), torch.ones(80))
    assert (filters[1:-1].sum(dim=1) > 0).all()
    spectrum = torch.rand(5, 257, generator=torch.Generator().manual_seed(0))
    inverted = invert_mel(spectrum @ filters, filters, iterations=300)
    assert (inverted >= 0).all()
    torch.testing.assert_close(inverted @ filters, spectrum @ filters, atol=5e-3, rtol=0.01)
    with pytest.raises(ValueError, match="too many"):
        mel_filters(RATE, 128, 80)


def test_tones_between_the_bins_run_on_without_a_round_of_griffin_lim():
    times = torch.arange(60 * 128) / RATE
    tones = sum(
        torch.sin(2 * math.pi * hz * times + start) for hz, start in ((333.3, 0.5), (1234.5, 1.0), (4040.4, 2.0))
    )
    heard = spectral.analyse(tones[None], 128)[0]  # type: ignore[index]
    magnitudes = heard.abs()

    def error(phases: torch.Tensor) -> float:
        again = spectral.analyse(spectral.overlap_add((magnitudes * phases)[None], 128), 128)[0].abs()
        return float((again - magnitudes)[4:-4].norm() / magnitudes[4:-4].norm())

    assert error(spectral.first_phases(*magnitudes.shape)) > 0.2
    assert error(spectral.running_phases(magnitudes)) < 0.05
    known = spectral.running_phases(magnitudes, spectral.unit(heard[0]))[:10]
    loud = magnitudes[:10] > 0.1 * magnitudes.max()
    assert float((known * spectral.unit(heard[:10]).conj()).real[loud].min()) > 0.8, "they go on as they began"


def test_silence_and_flat_spectra_have_phases_too():
    for magnitudes in (torch.zeros(3, 257), torch.ones(3, 257)):
        assert torch.allclose(spectral.running_phases(magnitudes).abs(), torch.ones(3, 257))


@pytest.mark.parametrize("chunk", [3, 8])
def test_a_stream_comes_as_near_to_the_spectra_as_whole_decoding(speech, chunk):
    errors = np.zeros(2)
    for wave in list(speech.held_out.values()):
        (codes,) = speech.codec.encode([wave])
        stream = speech.codec.decode_stream()
        parts = [stream.push(codes[i : i + chunk]) for i in range(0, len(codes), chunk)]
        wanted = speech.codec._spectra(torch.from_numpy(codes).long())[0]
        for n, made in enumerate((np.concatenate([*parts, stream.finish()]), speech.codec.decode(codes))):
            got = spectral.amplitudes(torch.from_numpy(made), 128) * spectral.hann(128).sum()
            errors[n] += float((got - wanted).norm() / wanted.norm())
    assert errors[0] < 1.1 * errors[1]


def test_codes_of_a_wave_that_arrives_bit_by_bit_are_those_of_the_whole(speech):
    codec, wave = speech.codec, speech.waves[0][: 3 * RATE + 77]
    random = np.random.default_rng(0)
    stream, codes, at = codec.encode_stream(), [], 0
    while at < len(wave):
        step = int(random.integers(1, 5000))
        codes.append(stream.push(wave[at : at + step]))
        at += step
        # a code is final once the 192 samples behind it are heard
        assert sum(map(len, codes)) == max((min(at, len(wave)) - 192) // codec.config.samples_per_code, 0)
    found = np.concatenate([*codes, stream.finish()])
    assert_same_choices(found, codec.encode([wave])[0], lambda: nearness(codec, wave))
    assert codec.encode_stream().finish().size == 0


def test_streams_that_are_pushed_to_together_give_what_each_gives_alone(speech):
    random = np.random.default_rng(2)
    codec, codes = speech.codec, [random.integers(0, 512, 60) for _ in range(5)]
    alone, together = ([codec.decode_stream() for _ in codes] for _ in range(2))
    at = [0] * len(codes)
    for _ in range(8):  # some begin later than others, and a piece may have no codes
        some = random.choice(len(codes), int(random.integers(1, 6)), replace=False)
        pieces = [codes[n][at[n] : at[n] + int(random.integers(0, 9))] for n in some]
        made = list(codec.push_streams([together[n] for n in some], pieces))
        for n, piece, wave in zip(some, pieces, made, strict=True):
            assert np.array_equal(wave, alone[n].push(piece))
            at[n] += len(piece)
    together[3].finish()
    with pytest.raises(ValueError, match="finished"):
        list(codec.push_streams(together, [row[:4] for row in codes]))
    for n in (0, 1, 2, 4):  # no other stream has taken its codes
        assert np.array_equal(together[n].push(codes[n][:4]), alone[n].push(codes[n][:4]))
