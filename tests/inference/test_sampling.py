"""Drawing tokens: what each setting keeps, and that a session's draws are its own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.margins import assert_most_likely, assert_same_answers, assert_same_choices, scores_of
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Greedy, Sampling, SpanConstraint, generate
from vita_audio_pl.inference.sampling import Sampler
from vita_audio_pl.interleave import DecodePattern

LOGITS = st.lists(st.integers(-32, 32), min_size=12, max_size=12, unique=True).map(
    lambda n: np.asarray(n, np.float32) / 4
)


@given(
    LOGITS,
    st.floats(0.2, 3),
    st.integers(0, 12),
    st.floats(0.05, 1),
    st.sampled_from([1.0, 1.3, 0.8]),
    st.sets(st.integers(0, 11)),
)
def test_probabilities_equal_those_of_transformers(logits, temperature, top_k, top_p, penalty, seen):
    ours = Sampler(Sampling(temperature, top_k, top_p, penalty)).probabilities(torch.from_numpy(logits), seen)
    steps = LogitsProcessorList()
    if seen:
        steps.append(RepetitionPenaltyLogitsProcessor(penalty))
    steps.append(TemperatureLogitsWarper(temperature))
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    theirs = steps(torch.tensor([sorted(seen)], dtype=torch.int64), torch.from_numpy(logits)[None]).softmax(-1)[0]
    assert torch.equal(ours > 0, theirs > 0)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@given(LOGITS, st.integers(0, 1000))
def test_draws_never_take_what_has_no_probability(logits, seed):
    sampler = Sampler(Sampling(temperature=1.0, top_k=3, seed=seed))
    chances = sampler.probabilities(torch.from_numpy(logits), ())
    assert all(chances[sampler.draw(chances)] > 0 for _ in range(5))


def test_frequencies_are_the_probabilities():
    sampler = Sampler(Sampling(temperature=1.0))
    chances = torch.tensor([0.5, 0.0, 0.2, 0.3])
    counts = np.bincount([sampler.draw(chances) for _ in range(4000)], minlength=4) / 4000
    assert counts[1] == 0 and np.abs(counts - chances.numpy()).max() < 0.04


def test_a_sessions_draws_depend_on_its_seed_alone(model, runtime, prompts):
    batch = prompts(5, 9, 5, 20)
    batch[2] = batch[0]
    samplings = [Sampling(temperature=1.5, seed=seed) for seed in (3, 4, 3, 3)]
    boost = DecodePattern.of("boost")
    together = generate(runtime, batch, boost, max_new_tokens=30, sampling=samplings)
    [alone] = generate(runtime, batch[:1], boost, max_new_tokens=30, sampling=samplings[0])
    for answer in (together[0], together[2]):
        assert_same_answers(model, boost, batch[:1], [answer.ids], [alone.ids], sampling=samplings[0])
    [other] = generate(runtime, batch[:1], boost, max_new_tokens=30, sampling=samplings[1])
    assert other.ids != alone.ids


def test_greedy_and_sampled_sessions_share_a_batch(model, runtime, prompts):
    batch, turbo = prompts(6, 6), DecodePattern.of("turbo")
    mixed = [Greedy, Sampling(temperature=2.0, seed=1)]
    answers = generate(runtime, batch, turbo, max_new_tokens=20, sampling=mixed)
    alone = [generate(runtime, [p], turbo, max_new_tokens=20, sampling=s)[0] for p, s in zip(batch, mixed, strict=True)]
    assert_same_answers(model, turbo, batch, [a.ids for a in answers], [a.ids for a in alone], sampling=mixed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"repetition_penalty": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}="):
        Sampling(**wrong)


CONSTRAINT = SpanConstraint(begin=60, end=61, turn_end=2, first_code=64, n_codes=30)


@pytest.mark.parametrize("mode", ["vanilla", "boost", "turbo"])
@pytest.mark.parametrize("sampling", [Greedy, Sampling(temperature=3.0)])
def test_inside_a_span_only_codes_and_ends_are_written(runtime, prompts, mode, sampling):
    batch = [[*prompt, 60] for prompt in prompts(3, 5, 8)]
    answers = generate(
        runtime, batch, DecodePattern.of(mode), max_new_tokens=60, sampling=sampling, constraint=CONSTRAINT
    )
    outside = 0
    for answer in answers:
        inside = True
        for token in answer.ids:
            assert not inside or 64 <= token < 94 or token in (61, 2)
            outside += not inside
            inside = CONSTRAINT.after(inside, token)
    assert sampling is Greedy or outside


def test_the_constraint_takes_the_best_of_what_is_allowed_and_leaves_text_alone(model, prompts):
    pattern = DecodePattern.of("vanilla")
    [prompt] = prompts(7, vocabulary=60, seed=2)
    assert_most_likely(
        model, pattern, prompt, generate(model, [prompt], pattern, max_new_tokens=1, constraint=CONSTRAINT)[0].ids
    )
    opened = [*prompt, 60]
    [answer] = generate(model, [opened], pattern, max_new_tokens=1, constraint=CONSTRAINT)
    allowed = list(CONSTRAINT.allowed)
    scores = scores_of(model, pattern, opened, answer.ids)
    assert int(scores.argmax()) not in allowed  # so that the constraint has something to do
    assert_same_choices([allowed.index(answer.ids[0])], [int(scores[0, allowed].argmax())], scores[:, allowed])
