"""From tokens to events in worker threads, without a server."""

import numpy as np
import pytest

from vita_audio_pl.inference.streaming import EventMaker, TextPiece
from vita_audio_pl.serving import voice
from vita_audio_pl.serving.voice import Speaker
from vita_audio_pl.serving.workers import Workers


class Failing:
    """A codec that fails as soon as sound is made, and notes what had been delivered by then."""

    sample_rate = 16_000

    def __init__(self, delivered):
        self.delivered, self.before = delivered, None

    def decode_stream(self):
        return self

    def push(self, codes):
        self.before = list(self.delivered)
        raise OSError("no sound")

    def finish(self):
        return self.push([])


@pytest.mark.parametrize("at", ["end of a span", "end of the answer"])
def test_text_does_not_wait_for_sound_and_is_not_lost_if_that_fails(loaded, at):
    vocabulary, text = loaded.vocabulary, loaded.tokenizer.encode("the cow")
    codes = [vocabulary.begin_of_audio, vocabulary.first_code, vocabulary.first_code]
    half = loaded.tokenizer.encode("\u725b")[:1]  # waits for the rest of its character
    batches = [codes, [vocabulary.end_of_audio, *text]] if at == "end of a span" else [text, half]
    delivered = []
    codec = Failing(delivered)
    pool = Workers(1)
    speaker = Speaker(pool, EventMaker(loaded.tokenizer, vocabulary, codec), 12.5, delivered.append)
    for batch in batches:
        speaker.push(batch, [0] * len(batch))
    speaker.finish()
    pool.close()
    written = "".join(event.text for event in codec.before if isinstance(event, TextPiece))
    assert written == loaded.tokenizer.decode([token for token in sum(batches, []) if token in {*text, *half}])
    assert delivered[:-2] == codec.before and delivered[-1] is None and isinstance(delivered[-2], OSError)


class Silent:
    """A codec of one sample a code."""

    sample_rate = 16_000

    def decode_stream(self):
        return self

    def push(self, codes):
        return np.zeros(len(codes), np.float32)

    def finish(self):
        return np.zeros(0, np.float32)


class AtOnce:
    """Workers that do what is submitted in the caller's thread."""

    def submit(self, work, due=0.0):
        work()


@pytest.mark.parametrize("spoken", [True, False])
def test_text_comes_with_its_sound_or_ten_times_a_second(loaded, monkeypatch, spoken):
    vocabulary, clock = loaded.vocabulary, [0.0]
    monkeypatch.setattr(voice.time, "monotonic", lambda: clock[0])
    text = loaded.tokenizer.encode("the girl sees the cow, the teacher has three tickets") * 4
    span = [vocabulary.begin_of_audio, vocabulary.first_code, vocabulary.end_of_audio]
    delivered = []
    speaker = Speaker(AtOnce(), EventMaker(loaded.tokenizer, vocabulary, Silent() if spoken else None), 12.5, delivered.append)  # fmt: skip
    pieces = []  # of text, after each token
    for number, token in enumerate(text):
        clock[0] += 0.03
        speaker.push([token], [0])
        pieces.append(sum(isinstance(event, TextPiece) for event in delivered))
        if spoken and number == 1:
            before = len(delivered)
            speaker.push(span, [0, 1, 1])
            kinds = [type(event).__name__ for event in delivered[before:]]
            assert kinds == ["TextPiece", "NewCodes", "AudioChunk"]  # what waited comes first
    if spoken:
        assert pieces[0] == 1 and pieces[-1] <= 0.03 * len(text) / voice._PAUSE + 2
    else:
        assert pieces == [*range(1, len(text) + 1)]  # who only reads has each as it is written
    clock[0] += 1
    speaker.push([text[0]], [0])
    assert isinstance(delivered[-1], TextPiece)  # a slow model's text does not wait
    speaker.push([text[0]], [0])
    speaker.finish()
    written = "".join(event.text for event in delivered if isinstance(event, TextPiece))
    assert written == loaded.tokenizer.decode([*text, text[0], text[0]]) and delivered[-1] is None
