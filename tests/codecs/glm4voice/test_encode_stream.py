"""Codes that are handed out while the speaker talks."""

import numpy as np
import pytest

from tests.codecs.glm4voice.nearest import assert_same_codes, nearness_of
from tests.margins import assert_same_choices, near_ties
from vita_audio_pl.codecs.glm4voice import EncodeStream

BLOCK = 64_000  # samples that one block of the encoder stands for


def streamed(stream: EncodeStream, wave: np.ndarray, step: int) -> tuple[np.ndarray, list[int]]:
    given = [stream.push(wave[start : start + step]) for start in range(0, len(wave), step)]
    return np.concatenate([*given, stream.finish()]), [len(codes) for codes in given]


@pytest.mark.parametrize("step", [8_000, 4_999])
def test_streamed_codes_are_those_of_the_whole_wave(tokenizer, waves, step):
    wave = np.tile(waves["w7p3s"], 5)[:530_000]  # crosses the cut at 30 s
    stream = EncodeStream(tokenizer)
    codes, given = streamed(stream, wave, step)
    nearness = nearness_of(tokenizer, wave)
    assert_same_choices(codes, tokenizer.encode([wave])[0], nearness)
    assert stream.changed <= near_ties(nearness)
    assert given.index(50) == (BLOCK - 120 - 1) // step and sum(given[: given.index(50)]) == 0


def test_a_code_is_final_as_soon_as_no_later_sample_reaches_it(tokenizer, waves):
    wave = waves["w7p3s"]
    stream = EncodeStream(tokenizer)
    assert len(stream.push(wave[: BLOCK - 121])) == 0
    assert len(stream.push(wave[BLOCK - 121 : BLOCK - 120])) == 50


def test_codes_changed_by_a_later_louder_sound_are_counted_and_exact_waits_for_it(tokenizer):
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(BLOCK).astype(np.float32)
    wave = np.concatenate((quiet, np.sin(np.arange(BLOCK, dtype=np.float32) / 3)))
    whole = tokenizer.encode([wave])[0]
    stream = EncodeStream(tokenizer)
    codes, _ = streamed(stream, wave, 8_000)
    changed, nearness = (codes != whole).sum(), nearness_of(tokenizer, wave)
    assert abs(stream.changed - changed) <= near_ties(nearness) < changed
    exact = EncodeStream(tokenizer, exact=True)
    codes, given = streamed(exact, wave, 8_000)
    assert_same_choices(codes, whole, nearness)
    assert exact.changed == 0 and sum(given) == 0


def test_provisional_codes_do_not_count_as_given(tokenizer, waves):
    stream = EncodeStream(tokenizer)
    given = stream.push(waves["w7p3s"][:80_000])
    assert len(given) == 50 and len(stream.provisional()) == 63 - 50
    rest = [stream.push(waves["w7p3s"][80_000:]), stream.finish()]
    assert_same_codes(tokenizer, waves["w7p3s"], np.concatenate((given, *rest)), tokenizer.encode([waves["w7p3s"]])[0])


def test_a_stream_without_audio_has_no_codes(tokenizer):
    assert len(EncodeStream(tokenizer).finish()) == 0
