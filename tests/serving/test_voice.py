"""From tokens to events in worker threads, without a server."""

import pytest

from vita_audio_pl.inference.streaming import EventMaker, TextPiece
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
