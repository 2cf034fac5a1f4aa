"""Sessions side by side: joining, leaving, failing and streaming without touching each other."""

import threading
from dataclasses import dataclass

import numpy as np
import pytest

from tests.margins import assert_same_answers
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, generate
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.session import Session
from vita_audio_pl.inference.streaming import AudioChunk, End, EventMaker, NewCodes, TextPiece, stream
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.text.tokenizer import TextTokenizer

BOOST = DecodePattern.of("boost")


def test_sessions_join_and_leave_and_each_writes_what_it_writes_alone(model, runtime, prompts):
    batch = prompts(12, 3, 30)
    alone = [generate(runtime, [prompt], BOOST, max_new_tokens=40)[0].ids for prompt in batch]
    decoder = Decoder(runtime, slots=2, capacity=128)
    first = Session(decoder, batch[0], BOOST, max_new_tokens=40)
    heard = first.advance() + first.advance()
    second = Session(decoder, batch[1], BOOST, max_new_tokens=40)
    heard += first.advance()
    written = [sum(second, [])]  # drives the first session along
    second.close()
    with Session(decoder, batch[2], BOOST, max_new_tokens=40) as third:
        written.append(sum(third, []))
    written.insert(0, heard + sum(first, []))
    first.close()
    assert_same_answers(model, BOOST, batch, written, alone)
    assert decoder.free_slots == 2


def test_threads_share_a_decoder(model, runtime, prompts):
    batch = prompts(5, 11, 23, 8)
    alone = [generate(runtime, [prompt], BOOST, max_new_tokens=50)[0].ids for prompt in batch]
    decoder = Decoder(runtime, slots=4, capacity=128)
    written = [None] * 4

    def run(number):
        with Session(decoder, batch[number], BOOST, max_new_tokens=50) as session:
            written[number] = sum(session, [])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_answers(model, BOOST, batch, written, alone)


def test_a_session_is_closed_once_and_not_used_afterwards(runtime):
    session = Session(Decoder(runtime, capacity=32), [1, 2], BOOST, max_new_tokens=4)
    session.close()
    with pytest.raises(UserError, match="closed already"):
        session.close()
    with pytest.raises(UserError, match="this session is closed; open a new one"):
        session.advance()


def test_more_sessions_or_tokens_than_there_is_room_for_are_refused(runtime):
    decoder = Decoder(runtime, slots=1, capacity=32)
    with pytest.raises(
        UserError, match="a prompt of 30 tokens and an answer of up to 4 do not fit into the cache of 32"
    ):
        Session(decoder, [1] * 30, BOOST, max_new_tokens=4)
    Session(decoder, [1], BOOST, max_new_tokens=4)
    with pytest.raises(UserError, match="all 1 sessions are taken"):
        Session(decoder, [1], BOOST, max_new_tokens=4)


@pytest.mark.parametrize("verify", ["none", "greedy"])
def test_one_sessions_failure_leaves_the_others_running(tiny_model, prompts, verify):
    model = tiny_model()
    poison, batch = 90, [[t % 80 for t in prompt] for prompt in prompts(9, 4, 6)]
    model.model.embed_tokens.weight[poison] = float("nan")
    runtime = Runtime(model)
    limits = {"max_new_tokens": 30, "verify": verify}
    alone = [generate(runtime, [prompt], BOOST, **limits)[0].ids for prompt in batch]
    assert poison not in sum(alone, [])
    decoder = Decoder(runtime, slots=3, capacity=64)
    good = Session(decoder, batch[0], BOOST, **limits)
    bad = Session(decoder, [1, poison, 2], BOOST, **limits)
    other = Session(decoder, batch[1], BOOST, **limits)
    with pytest.raises(UserError, match="not a number"):
        list(bad)
    bad.close()
    late = Session(decoder, batch[2], BOOST, **limits)  # in the slot that the failed one left
    writes = BOOST if verify == "none" else DecodePattern.of("vanilla")
    assert_same_answers(model, writes, batch, [sum(s, []) for s in (good, other, late)], alone)


# -- streaming --------------------------------------------------------------------------------------------------------


@dataclass
class ToyCodec:
    """Four samples a code, two of which wait for what follows."""

    sample_rate: int = 100

    def decode(self, codes):
        return np.repeat(np.asarray(codes, np.float32), 4)

    def decode_stream(self):
        return ToyStream(self)


class ToyStream:
    def __init__(self, codec):
        self.codec, self.held = codec, np.zeros(0, np.float32)

    def push(self, codes):
        wave = np.concatenate([self.held, self.codec.decode(codes)])
        self.held = wave[-2:]
        return wave[:-2]

    def finish(self):
        return self.held


@pytest.fixture(scope="module")
def spoken():
    """A tokenizer, its vocabulary, and a model that recites a fixed interleaved answer after any prompt."""
    tokenizer = TextTokenizer.train(["the big red cow lives in the farm " * 30], 275)
    vocabulary = tokenizer.vocabulary(32)
    return tokenizer, vocabulary


def recite(monkeypatch, script):
    """Makes the scorer say `script` whatever the model computes; drafts and backbone agree."""
    from vita_audio_pl.inference.scoring import Scorer
    from vita_audio_pl.inference.sequence import DecodedSequence

    spots = {}
    restriction = DecodedSequence.restriction

    def remember(self, position):
        spots.setdefault("asked", []).append(
            (position if position >= 0 else len(self.ids) + position) + 1 - self.n_prompt
        )
        return restriction(self, position)

    def say(self, hidden, restrictions, entropies=None):
        asked, spots["asked"] = spots["asked"], []
        if entropies is not None:
            entropies[:] = [None] * len(asked)
        return [script[spot] if spot < len(script) else 0 for spot in asked]

    monkeypatch.setattr(DecodedSequence, "restriction", remember)
    monkeypatch.setattr(Scorer, "most_likely", say)


def events_of(spoken, runtime, monkeypatch, script, mode="boost", **options):
    tokenizer, vocabulary = spoken
    recite(monkeypatch, script)
    decoder = Decoder(runtime, capacity=256)
    session = Session(decoder, [1, 2, 3], DecodePattern.of(mode), max_new_tokens=len(script), **options)
    return list(stream(session, tokenizer, vocabulary, ToyCodec()))


def answer(spoken, text, codes, ratio=(1, 10, 4, 10)):
    from vita_audio_pl.interleave import IntervalRatio

    tokenizer, vocabulary = spoken
    ids = IntervalRatio(ratio).interleave(
        tokenizer.encode(text), vocabulary.code_ids(codes), vocabulary.begin_of_audio, vocabulary.end_of_audio
    )
    return [*ids.tolist(), vocabulary.im_end]


@pytest.fixture(scope="module")
def speaking_runtime(tiny_model, spoken):
    runtime = Runtime(tiny_model(n_heads=10, vocabulary=spoken[1].size))
    runtime.costs = PassCosts(backbone=1.0, backbone_row=0.0, head=0.0, head_row=0.0)  # every draft pays
    return runtime


CODES = np.arange(45) % 32


@pytest.mark.parametrize("mode", ["vanilla", "balance", "boost", "turbo"])
@pytest.mark.parametrize("verify", ["none", "greedy"])
def test_a_stream_gives_all_text_codes_and_sound_in_order(spoken, speaking_runtime, monkeypatch, mode, verify):
    text = "the big red cow livés in the farm 牛"
    events = events_of(spoken, speaking_runtime, monkeypatch, answer(spoken, text, CODES), mode, verify=verify)
    assert "".join(e.text for e in events if isinstance(e, TextPiece)) == text
    assert all("\ufffd" not in e.text for e in events if isinstance(e, TextPiece))
    assert np.concatenate([e.codes for e in events if isinstance(e, NewCodes)]).tolist() == CODES.tolist()
    sound = np.concatenate([e.wave for e in events if isinstance(e, AudioChunk)])
    assert np.array_equal(sound, ToyCodec().decode(CODES))  # no tail is lost, nothing is played twice
    assert isinstance(events[-1], End) and sum(isinstance(e, End) for e in events) == 1


@pytest.mark.parametrize(
    ("mode", "options", "passes"),
    [
        ("boost", {}, 1),
        ("turbo", {}, 1),
        ("boost", {"verify": "greedy"}, 2),
        ("boost", {"verify": "greedy", "first_chunk": True}, 1),
        ("vanilla", {}, 11),
    ],
)
def test_the_first_sound_comes_after_this_many_backbone_passes(
    spoken, speaking_runtime, monkeypatch, mode, options, passes
):
    tokenizer, vocabulary = spoken
    if options.get("first_chunk"):
        options = options | {"first_chunk": (vocabulary.begin_of_audio, vocabulary.end_of_audio)}
    script = answer(spoken, "the big red cow", CODES)
    recite(monkeypatch, script)
    decoder = Decoder(speaking_runtime, capacity=256)
    session = Session(decoder, [1, 2, 3], DecodePattern.of(mode), max_new_tokens=len(script), **options)
    for event in stream(session, tokenizer, vocabulary, ToyCodec()):
        if isinstance(event, AudioChunk):
            break
    assert session.result().backbone_passes == passes


def test_a_draft_played_first_is_kept_and_the_rest_is_verified_given_it(tiny_model, prompts):
    """Draft-first is Boost's first chunk followed by Vanilla's tokens for that beginning."""
    model = tiny_model(n_heads=10)
    begin, end, [prompt] = 60, 61, prompts(6)
    free = generate(model, [prompt], BOOST, max_new_tokens=11)[0].ids
    begin, end = free[1], free[6]  # as if the first head opened a span and the sixth closed it
    session = Session(
        Decoder(Runtime(model), capacity=64),
        prompt,
        BOOST,
        max_new_tokens=40,
        verify="greedy",
        first_chunk=(begin, end),
    )
    assert session.advance() == free[:7]
    written = free[:7] + sum(session, [])
    started, vanilla = [prompt + free[:7]], DecodePattern.of("vanilla")
    expected = generate(model, started, vanilla, max_new_tokens=33)[0].ids
    assert_same_answers(model, vanilla, started, [written[7:]], [expected])
    assert session.result().writers[:7] == [0, 1, 2, 3, 4, 5, 6]


def test_a_draft_that_opens_no_span_is_verified_even_draft_first(tiny_model, prompts):
    model, [prompt] = tiny_model(), prompts(6)
    limits = {"max_new_tokens": 30, "verify": "greedy"}
    session = Session(Decoder(Runtime(model), capacity=64), prompt, BOOST, first_chunk=(95, 96), **limits)
    vanilla = DecodePattern.of("vanilla")
    expected = generate(model, [prompt], vanilla, max_new_tokens=30)[0].ids
    assert_same_answers(model, vanilla, [prompt], [sum(session, [])], [expected])


def test_tokens_pushed_together_hold_back_no_sound_that_one_by_one_they_give(spoken):
    tokenizer, vocabulary = spoken
    script = answer(spoken, "the big red cow", CODES, ratio=(1, 3, 2, 9))

    def samples(*batches):
        maker = EventMaker(tokenizer, vocabulary, ToyCodec(), codes_per_chunk=4)
        events = [event for batch in batches for event in maker.push(batch, [0] * len(batch))]
        return sum(event.wave.size for event in events if isinstance(event, AudioChunk))

    for cut in range(len(script)):
        for start in range(cut):
            apart = samples(script[:start], *([token] for token in script[start:cut]))
            assert samples(script[:start], script[start:cut]) >= apart, (start, cut)


def test_a_silent_answer_streams_text_alone(spoken, speaking_runtime, monkeypatch):
    tokenizer, vocabulary = spoken
    script = [*tokenizer.encode("the cow"), vocabulary.im_end]
    events = events_of(spoken, speaking_runtime, monkeypatch, script, "vanilla")
    assert [type(e) for e in events[-2:]] == [TextPiece, End]
    assert not any(isinstance(e, AudioChunk | NewCodes) for e in events)


def test_joins_that_click_are_told_from_joins_that_do_not():
    from vita_audio_pl.inference.seams import log_mel_distance, seam_flux

    rate = 16000
    time = np.arange(rate) / rate
    random = np.random.default_rng(0)
    wave = (0.2 * np.sin(2 * np.pi * 200 * time * (1 + 0.1 * time)) + 0.02 * random.standard_normal(rate)).astype(
        np.float32
    )
    cuts = [3000, 7000, 11500]
    smooth = np.split(wave, cuts)
    clicking = [chunk * (1 if i % 2 else 0.2) for i, chunk in enumerate(smooth)]
    assert seam_flux(smooth, rate) < 1.3 < 1.6 < seam_flux(clicking, rate)
    assert log_mel_distance(wave, wave, rate) == 0 < 0.3 < log_mel_distance(wave, np.concatenate(clicking), rate)
    with pytest.raises(ValueError, match="a seam needs two chunks"):
        seam_flux([wave], rate)
