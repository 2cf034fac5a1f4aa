"""Many sessions of one decoder, some of whose requests are bad: each fails alone, and nothing reaches a neighbour."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.margins import assert_same_answers
from vita_audio_pl.config.decoding import VERIFY_MODES
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, Sampling, SpanConstraint, generate
from vita_audio_pl.inference import decoder as decoder_module
from vita_audio_pl.inference.code_groups import CodeGroups
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.session import Session
from vita_audio_pl.inference.verify import speculative
from vita_audio_pl.interleave import DecodePattern

SLOTS, CAPACITY, VOCABULARY = 3, 64, 97
POISON = VOCABULARY
GROUPS = CodeGroups(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), 64, 0.3)
MODES = [DecodePattern.of(mode) for mode in ("turbo", "boost", "balance", "vanilla")]


def constraint(**changes):
    return SpanConstraint(**{"begin": 60, "end": 61, "turn_end": 2, "first_code": 64, "n_codes": 20} | changes)


BAD = {
    "a float in the prompt": lambda r: {"prompt": [*r["prompt"], 3.0]},
    "a float tensor as prompt": lambda r: {"prompt": torch.ones(3)},
    "a nested prompt": lambda r: {"prompt": [r["prompt"]]},
    "a text as prompt": lambda r: {"prompt": "hello"},
    "nothing as prompt": lambda r: {"prompt": None},
    "NaN in the prompt": lambda r: {"prompt": [math.nan]},
    "an empty prompt": lambda r: {"prompt": []},
    "a token beyond the vocabulary": lambda r: {"prompt": [*r["prompt"], 98]},
    "a huge token": lambda r: {"prompt": [2**80]},
    "a token below 0": lambda r: {"prompt": [-1, *r["prompt"]]},
    "a prompt longer than the cache": lambda r: {"prompt": [1] * CAPACITY},
    "a limit longer than the cache": lambda r: {"max_new_tokens": CAPACITY},
    "a limit of 0": lambda r: {"max_new_tokens": 0},
    "a limit that is no whole number": lambda r: {"max_new_tokens": 3.5},
    "stops that are no ids": lambda r: {"stop_ids": ["end"]},
    "stops beyond the vocabulary": lambda r: {"stop_ids": [500]},
    "codes beyond the vocabulary": lambda r: {"constraint": constraint(n_codes=35)},
    "a marker beyond the vocabulary": lambda r: {"constraint": constraint(end=1000)},
    "a marker among the codes": lambda r: {"constraint": constraint(end=70)},
    "a constraint of text": lambda r: {"constraint": constraint(begin="<|begin|>")},
    "no codes": lambda r: {"constraint": constraint(n_codes=0)},
    "a dict as constraint": lambda r: {"constraint": {"begin": 60}},
    "one marker of the first chunk": lambda r: {
        "verify": "greedy",
        "groups": None,
        "sampling": Sampling(),
        "first_chunk": (60,),
    },
    "a first chunk beyond the vocabulary": lambda r: {"first_chunk": (60, 500)},
    "an unknown check": lambda r: {"verify": "maybe"},
    "groups without a codec": lambda r: {"verify": "groups", "groups": None},
    "a temperature that is not a number": lambda r: {"sampling": Sampling(temperature="hot")},
    "a temperature of NaN": lambda r: {"sampling": Sampling(temperature=math.nan)},
    "a top_k of a half": lambda r: {"sampling": Sampling(temperature=1.0, top_k=2.5)},
    "a seed beyond 64 bits": lambda r: {"sampling": Sampling(temperature=1.0, seed=2**70)},
    "a mode's name as pattern": lambda r: {"pattern": "boost"},
    "recordings for a model without ears": lambda r: {"clips": [torch.zeros(3, 4)]},
    "a prompt that gives NaN": lambda r: {"prompt": [POISON, *r["prompt"]]},
}
"""What a request may have wrong with it: from a good request to the fields that spoil it."""


@pytest.fixture(scope="module")
def poisoned(tiny_model):
    """A model that reads one token more than it can write, whose embedding is not a number.

    It computes in float64, so that what is decoded beside a session cannot tip a draw by its rounding.
    """
    runtime = Runtime(tiny_model().double())
    runtime.embedding = torch.cat([runtime.embedding, torch.full_like(runtime.embedding[:1], math.nan)])
    runtime.vocab_size += 1
    return runtime


@st.composite
def requests(draw):
    """A request that can be answered."""
    verify = draw(st.sampled_from(VERIFY_MODES))
    greedy = verify == "greedy" or draw(st.booleans())
    opens_span = draw(st.booleans())
    prompt = draw(st.lists(st.integers(0, 59), min_size=1, max_size=12)) + [60] * opens_span
    return {
        "prompt": draw(st.sampled_from([list, np.asarray, torch.tensor]))(prompt),
        "pattern": draw(st.sampled_from(MODES)),
        "max_new_tokens": draw(st.integers(1, 30)),
        "stop_ids": [5],
        "sampling": Sampling() if greedy else Sampling(temperature=3.0, seed=draw(st.integers(0, 9))),
        "constraint": constraint() if opens_span else None,  # equal to others', and another object
        "verify": verify,
        "groups": GROUPS if verify == "groups" else None,
        "first_chunk": (60, 61) if verify != "none" and draw(st.booleans()) else None,
    }


@pytest.mark.parametrize("examples", [15, pytest.param(1000, marks=pytest.mark.slow)])
def test_bad_requests_fail_alone_and_the_others_write_what_they_write_alone(poisoned, examples):
    @settings(max_examples=examples, deadline=None)
    @given(data=st.data())
    def check(data):
        check_random_sessions(poisoned, data)

    check()


def check_random_sessions(poisoned, data):
    decoder = Decoder(poisoned, slots=SLOTS, capacity=CAPACITY)
    running, answers, opened = [], [], 0
    while opened < 6 or running:
        free = opened < 6 and len(running) < SLOTS
        if free and (not running or data.draw(st.booleans(), label="open")):
            opened += 1
            request = data.draw(requests(), label="request")
            flaw = data.draw(st.one_of(st.none(), st.sampled_from(sorted(BAD))), label="flaw")
            if flaw is None or flaw == "a prompt that gives NaN":
                request["prompt"] = (
                    BAD[flaw]({"prompt": list(request["prompt"])})["prompt"] if flaw else request["prompt"]
                )
                running.append((Session(decoder, **request), request, [], flaw))
            else:
                with pytest.raises(UserError):
                    Session(decoder, **request | BAD[flaw](request))
            continue
        place = data.draw(st.integers(0, len(running) - 1), label="advance")
        session, request, written, flaw = running[place]
        if flaw:
            if data.draw(st.booleans(), label="close before it is read"):
                session.close()
            else:
                with pytest.raises(UserError, match="not a number"):
                    session.advance()
                session.close()
            del running[place]
            continue
        new = session.advance()
        written += new
        if not new:
            session.close()
            answers.append((request, written))
            del running[place]
    assert decoder.free_slots == SLOTS and not decoder.errors
    for request, written in answers:
        alone = Session(Decoder(poisoned, slots=1, capacity=CAPACITY), **request)
        assert sum(alone, []) == written


@pytest.mark.parametrize("flaw", sorted(set(BAD) - {"a prompt that gives NaN"}))
def test_every_bad_request_is_refused_in_a_sentence_that_names_what_is_wrong(poisoned, flaw):
    request = {"prompt": [1, 2], "pattern": MODES[1], "max_new_tokens": 8, "sampling": Sampling(temperature=1.0)}
    decoder = Decoder(poisoned, capacity=CAPACITY)
    with pytest.raises(UserError) as refusal:
        Session(decoder, **request | BAD[flaw](request))
    assert decoder.free_slots == 1 and len(str(refusal.value)) < 300 and "\n" not in str(refusal.value)


def test_recordings_of_the_wrong_kind_are_refused_and_their_slot_stays_clean(tiny_model):
    from vita_audio_pl.models.initialise import add_speech_input
    from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder

    model = tiny_model()
    sizes = SenseVoiceConfig(width=16, heads=2, ffn_width=24, layers=2, text_layers=1, memory=3, n_mels=4, stack=3)
    add_speech_input(model, SenseVoiceEncoder(sizes), 96)
    decoder = Decoder(Runtime(model.eval().requires_grad_(False)), capacity=CAPACITY)
    prompt, good = [1, *[96] * 9], torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    request = {"pattern": MODES[1], "max_new_tokens": 8}
    wrong = [good[:, :11], good[0], good.long(), good * math.nan, good.numpy(), good[:0], good[:4]]
    for clip in wrong:
        with pytest.raises(UserError, match="recording 1|features of recording 1|9 places"):
            Session(decoder, prompt, clips=[clip], **request)
    with Session(decoder, prompt, clips=[good], **request) as session:
        assert len(sum(session, [])) == 8


def test_drafts_behind_an_unchecked_first_chunk_are_judged_by_what_they_were_drawn_from(
    agreeing_model, prompts, monkeypatch
):
    """Sixty runs under sampled verification, with and without a constraint; where a draw has one outcome, the rest is
    what Vanilla writes after the first chunk."""
    model, judged = agreeing_model(n_heads=6), []
    runtime = Runtime(model)
    runtime.costs = PassCosts(backbone=1.0, backbone_row=0.0, head=0.0, head_row=0.0)  # every draft pays

    def checked(drafts, proposals, targets, sampler, *loose):
        assert len(proposals) == len(drafts) == len(targets) - 1
        assert all(
            q.shape == p.shape and q[column] > 0 for column, q, p in zip(drafts, proposals, targets, strict=False)
        )
        judged.append(len(drafts))
        return speculative(drafts, proposals, targets, sampler, *loose)

    monkeypatch.setattr(decoder_module, "speculative", checked)
    for seed in range(60):
        [prompt] = prompts(6, seed=seed)
        sampling = Sampling(temperature=0.7 * (seed % 2), top_k=3, repetition_penalty=1.01, seed=seed)
        [free] = generate(runtime, [prompt], MODES[1], max_new_tokens=3, sampling=sampling)
        begin, end = free.ids[1:]  # as if the heads opened a span and closed it at once
        if begin == end or begin in prompt:
            continue
        code = next(c for c in range(0, 80, 16) if not {begin, end, 96} & set(range(c, c + 16)))
        limits = {"max_new_tokens": 24, "sampling": sampling, "verify": "sample", "first_chunk": (begin, end)}
        held = SpanConstraint(begin, end, 96, code, 16) if seed % 3 else None
        session = Session(Decoder(runtime, capacity=CAPACITY), prompt, MODES[1], constraint=held, **limits)
        first = session.advance()
        written = first + sum(session, [])
        assert first[:2] == free.ids[:2] and len(written) == 24 and session.result().writers[1] == 1
        if sampling.greedy:
            choice = {"sampling": sampling, "constraint": held}
            [rest] = generate(runtime, [prompt + first], MODES[3], max_new_tokens=24 - len(first), **choice)
            assert_same_answers(model, MODES[3], [prompt + first], [written[len(first) :]], [rest.ids], **choice)
    assert sum(map(bool, judged)) > 100
