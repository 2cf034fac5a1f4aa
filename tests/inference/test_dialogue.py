"""Conversations: whatever happens to the history, an answer is that to a fresh prompt of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.margins import assert_same_answers
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, Sampling, SpanConstraint, generate
from vita_audio_pl.inference import decoder as decoder_module
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.dialogue import ChatFormat, Conversation
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.text.tokenizer import TextTokenizer

CAPACITY, LONGEST = 160, 40
VANILLA = DecodePattern.of("vanilla")
MODES = [DecodePattern.of(mode) for mode in ("turbo", "boost", "balance", "vanilla")]


@pytest.fixture(scope="module")
def chat_format():
    tokenizer = TextTokenizer.train(["the big red cow lives in the farm " * 30], 275)
    return ChatFormat(tokenizer.vocabulary(32), tokenizer, IntervalRatio.of([1, 10, 4, 10]), lead_in=(3, 3))


@pytest.fixture(scope="module")
def speaker(tiny_model, chat_format):
    """A model of ten heads that opens and closes audio spans often: text is unlikely."""
    model = tiny_model(n_heads=10, vocabulary=chat_format.vocabulary.size)
    vocabulary = chat_format.vocabulary
    with torch.no_grad():
        model.lm_head.weight[: vocabulary.n_text] *= 0.6
        model.lm_head.weight[vocabulary.n_text : vocabulary.first_code] = 0
        model.lm_head.weight[[vocabulary.begin_of_audio, vocabulary.end_of_audio]] = 1.3 * torch.randn(2, 32)
        # ten larger ones in a row make 0.01 of float32's rounding of a drawn token
        for parameter in model.heads.parameters():
            parameter *= 0.5 if parameter.dim() > 1 else 1
    return model, Runtime(model)


@st.composite
def manners_of_decoding(draw, chat_format):
    verify = draw(st.sampled_from(["none", "none", "greedy"]))
    drawn = verify == "none" and draw(st.booleans())
    return Options(
        draw(st.sampled_from(MODES)),
        draw(st.integers(1, LONGEST)),
        frozenset([chat_format.vocabulary.im_end]),
        Sampling(temperature=0.7, seed=draw(st.integers(0, 9))) if drawn else Sampling(),
        SpanConstraint.of(chat_format.vocabulary) if draw(st.booleans()) else None,
        verify,
    )


texts = st.sampled_from(["the cow", "where is the big red cow", "a farm in the big farm", "牛"])
codes = st.lists(st.integers(0, 31), min_size=1, max_size=20).map(lambda c: np.asarray(c, np.int32))


@pytest.mark.parametrize("examples", [12, pytest.param(600, marks=pytest.mark.slow)])
def test_answers_are_those_to_a_fresh_prompt_whatever_happens_to_the_history(
    speaker, chat_format, monkeypatch, examples
):
    """Small chunks and a small window, so that heads fall behind and cuts reach beyond it; more conversations than slots."""
    monkeypatch.setattr(decoder_module, "PREFILL_CHUNK", 12)
    model, runtime = speaker
    kept = []

    @settings(max_examples=examples, deadline=None)
    @given(data=st.data())
    def check(data):
        decoder = Decoder(runtime, slots=2, capacity=CAPACITY)
        talks = [Conversation(decoder, chat_format) for _ in range(3)]
        talks[0].add("system", "the farm")
        for _ in range(data.draw(st.integers(2, 8))):
            talk = data.draw(st.sampled_from(talks))
            match data.draw(st.sampled_from(["ask", "ask", "ask", "cut", "delete", "fork", "quote"])):
                case "cut" if any(item.written for item in talk.items):
                    item = data.draw(st.sampled_from([item for item in talk.items if item.written]))
                    talk.cut(item, data.draw(st.integers(0, 12)))
                case "delete" if talk.items:
                    del talk.items[data.draw(st.integers(0, len(talk.items) - 1))]
                case "fork":
                    talks.append(talk.fork())
                case "quote":
                    talk.add("user", "where")
                    talk.add("assistant", data.draw(texts), data.draw(codes))
                case "ask":
                    talk.add("user", *data.draw(st.sampled_from([[data.draw(texts)], [data.draw(codes)]])))
                    ask(talk, data)
        for talk in talks:
            talk.close()
        assert decoder.free_slots == 2 and not decoder._resting

    def ask(talk, data):
        options = data.draw(manners_of_decoding(chat_format))
        sequence = talk.begin(options)
        prompt = sequence.ids[: sequence.n_prompt]
        assert len(prompt) + options.max_new_tokens <= CAPACITY
        assert prompt == talk.prompt() == Conversation(talk.decoder, chat_format, items=list(talk.items)).prompt()
        kept.append(sequence.read[0])
        rounds = data.draw(st.one_of(st.none(), st.integers(1, 4)), label="rounds before it is interrupted")
        while not sequence.finished and rounds != 0:
            talk.decoder.step()
            rounds = None if rounds is None else rounds - 1
        found = talk.end(data.draw(st.one_of(st.none(), st.integers(0, 9)), label="codes played"))
        fresh = generate(
            runtime,
            [prompt],
            options.pattern,
            max_new_tokens=options.max_new_tokens,
            stop_ids=options.stop_ids,
            sampling=options.sampling,
            constraint=options.constraint,
            verify=options.verify,
        )[0]
        writes = VANILLA if options.verify == "greedy" else options.pattern
        assert_same_answers(
            model,
            writes,
            [prompt],
            [found.ids],
            [fresh.ids[: len(found.ids)]],
            sampling=options.sampling,
            constraint=options.constraint if options.sampling.greedy else None,
        )

    check()
    # caches were used at all; a share of them is told by many examples alone, which are drawn anew each time
    assert sum(read > 0 for read in kept) > (len(kept) / 5 if examples > 100 else 0)


def test_only_new_tokens_are_read_and_what_training_would_write_stands_in_the_history(speaker, chat_format):
    _, runtime = speaker
    talk = Conversation(Decoder(runtime, slots=1, capacity=400), chat_format)
    vocabulary = chat_format.vocabulary
    talk.add("user", "where is the cow")
    text = chat_format.tokenizer.encode("the big red cow lives in the farm")
    spoken = np.arange(26) % 32
    ids = chat_format.ratio.interleave(
        text, vocabulary.code_ids(spoken), vocabulary.begin_of_audio, vocabulary.end_of_audio
    ).tolist()
    sequence = talk.begin(Options(VANILLA, 100, frozenset([vocabulary.im_end])))
    talk.decoder.step()
    for token in ids[len(sequence.writers) :]:
        sequence.write_backbone(token)  # as a trained model would
    sequence.ids[sequence.n_prompt :] = ids
    sequence.read[0] = sequence.n_prompt  # what stands there now was not read yet
    while not sequence.finished and sequence.n_written < len(ids) + 2:
        talk.decoder.step()
    sequence.finished = True
    written = sequence.result().ids
    talk.end()
    talk.cut(talk.items[-1], 26)
    before = len(sequence.ids) - (len(written) - len(ids))
    talk.add("user", spoken[:5])
    following = talk.begin(Options(MODES[1], 20, frozenset([vocabulary.im_end])))
    assert following.ids[: before - 1] == sequence.ids[: before - 1]  # all but the last end marker may be another
    assert following.read[0] >= before - 1
    assert (
        talk.chat_format.cut(ids, 0) == 0
        and talk.chat_format.cut(ids, 1) == 3
        and talk.chat_format.cut(ids, 9) == 1 + 10 + 4 + 2
    )
    talk.close()
    # a given answer gets the lead-in that training puts before it, a written one brings its own
    given = chat_format.input_turn("assistant", "cow", np.asarray([7, 8]))
    assert chat_format.renderer.prompt([given.turn]).tolist().count(vocabulary.first_code + 3) == 2


def test_a_full_context_slides_by_whole_exchanges_or_refuses_in_a_sentence(speaker, chat_format):
    _, runtime = speaker
    decoder = Decoder(runtime, slots=1, capacity=120)
    talk = Conversation(decoder, chat_format)
    talk.add("system", "the farm")
    options = Options(VANILLA, 20, frozenset([chat_format.vocabulary.im_end]))
    for _ in range(6):
        talk.add("user", "the big red cow")
        talk.add("assistant", "lives in the farm")
    talk.add("user", "where is the cow")
    strict = Conversation(decoder, chat_format, "refuse", list(talk.items))
    with pytest.raises(UserError, match="does not fit"):
        strict.begin(options)
    talk.begin(options)
    assert talk.left_out > 0 and talk.left_out % 2 == 0
    assert talk.items[0].turn.role == "system" and talk.items[1].turn.role == "user"
    assert len(talk.prompt()) + 20 <= 90
    talk.close()
    talk.items[1:-1] = []
    talk.items.append(chat_format.input_turn("user", np.arange(200) % 32))
    with pytest.raises(UserError, match="begin a new one"):
        talk.begin(options)
