"""Sequences wait for one another, so that few passes of heads serve many, and none waits for long."""

import pytest

from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.rounds import PATIENCE
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.interleave import DecodePattern

PROMPT = [5, 40, 21, 63, 8]


class Counting(Decoder):
    """Counts passes."""

    passes = 0

    def _run(self, predictor, *rest):
        self.passes += predictor > 0
        return super()._run(predictor, *rest)


@pytest.fixture(scope="module")
def decoder(tiny_model):
    return Counting(Runtime(tiny_model(n_heads=10)), slots=3, capacity=120)


def rounds_of(decoder, modes, apart, length=60):
    """Answers that begin so many rounds apart: for each the rounds in which it wrote, and passes of heads in all."""
    sequences, wrote, number, before = [], [], 0, decoder.passes
    while len(sequences) < len(modes) or not all(s.finished for s in sequences):
        if len(sequences) < len(modes) and number >= apart * len(sequences):
            mode = modes[len(sequences)]
            sequences.append(decoder.open(PROMPT, Options(DecodePattern.of(mode), length)))
            wrote.append([])
        written = [s.n_written for s in sequences]
        decoder.step()
        for at, (sequence, n) in enumerate(zip(sequences, written, strict=True)):
            if sequence.n_written > n:
                wrote[at].append(number)
        number += 1
    for sequence in sequences:
        decoder.close(sequence)
    return [s.result().ids for s in sequences], wrote, decoder.passes - before


def test_answers_out_of_step_share_the_passes_of_heads_as_those_in_step_do(decoder):
    together, _, least = rounds_of(decoder, ["boost"] * 3, apart=0)
    for apart in (1, 2, 3):
        answers, _, passes = rounds_of(decoder, ["boost"] * 3, apart)
        assert answers == together
        assert passes <= least + 20, apart  # the first run of the two that came later is their own


def test_nobody_waits_longer_than_patience_whatever_others_write(decoder):
    _, wrote, _ = rounds_of(decoder, ["vanilla", "boost", "balance"], apart=2)
    assert wrote[0] == list(range(60))
    for rounds in wrote[1:]:
        assert rounds[:2] == [rounds[0], rounds[0] + 1]  # who begins does not wait
        assert max(b - a for a, b in zip(rounds, rounds[1:], strict=False)) == PATIENCE + 1
