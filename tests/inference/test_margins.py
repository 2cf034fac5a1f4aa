"""What compares two computations' choices lets near ties pass, and nothing else."""

import pytest
import torch

from tests.margins import assert_most_likely, assert_same_answers, assert_same_choices, scores_of
from vita_audio_pl.inference import Greedy, Sampling, SpanConstraint, generate
from vita_audio_pl.interleave import DecodePattern

BOOST = DecodePattern.of("boost")


def test_choices_that_differ_have_to_be_as_good_as_the_best():
    scores = torch.tensor([[0.0, 2.0, 2.00005], [3.0, 1.0, 2.9]])
    assert_same_choices([1, 0], [2, 0], scores)
    for found, expected in (([1, 2], [2, 0]), ([0, 0], [2, 0]), ([0, 0], [1, 0])):
        with pytest.raises(AssertionError, match="one is worse by"):
            assert_same_choices(found, expected, scores)
    with pytest.raises(AssertionError, match="2 choices, 1 expected"):
        assert_same_choices([1, 0], [2], scores)


def test_an_answer_may_part_from_another_at_a_near_tie_alone(tiny_model, prompts):
    model, [prompt] = tiny_model(), prompts(7)
    [answer] = generate(model, [prompt], BOOST, max_new_tokens=30)
    assert_most_likely(model, BOOST, prompt, answer.ids)
    assert_same_answers(model, BOOST, [prompt], [answer.ids], [answer.ids])
    other = [*answer.ids[:20], answer.ids[20] + 1, *answer.ids[21:]]
    with pytest.raises(AssertionError, match="one is worse by"):
        assert_most_likely(model, BOOST, prompt, other)
    with pytest.raises(AssertionError, match="one is worse by"):
        assert_same_answers(model, BOOST, [prompt], [other], [answer.ids])
    with pytest.raises(AssertionError, match="begin alike"):
        assert_same_answers(model, BOOST, [prompt], [answer.ids[:20]], [answer.ids])
    model.lm_head.weight[other[20]] = model.lm_head.weight[answer.ids[20]]
    assert_same_answers(model, BOOST, [prompt], [[*other[:21], 0, 0]], [[*answer.ids[:21], 1, 1]])


@pytest.mark.parametrize("sampling", [Greedy, Sampling(repetition_penalty=1.5), Sampling(2.0, top_k=20, seed=3)])
def test_scores_are_those_that_tokens_are_chosen_by(model, prompts, sampling):
    [prompt] = prompts(7)
    constraint = SpanConstraint(begin=60, end=61, turn_end=2, first_code=64, n_codes=30) if sampling.greedy else None
    choice = {"sampling": sampling, "constraint": constraint}
    [answer] = generate(model, [[*prompt, 60]], BOOST, max_new_tokens=30, **choice)
    scores = scores_of(model, BOOST, [*prompt, 60], answer.ids, **choice)
    assert_same_choices(answer.ids, scores.argmax(-1), scores)
