"""Verified drafts: Vanilla's exact tokens, or its exact distribution, with fewer backbone passes."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.margins import assert_same_answers
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Greedy, Runtime, Sampling, SpanConstraint, generate
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.sampling import Sampler
from vita_audio_pl.inference.verify import agreeing, speculative
from vita_audio_pl.interleave import DecodePattern

MODES = ["turbo", "boost", "balance", "vanilla", [2, 3], [1, 13]]
VANILLA = DecodePattern.of("vanilla")


@pytest.mark.parametrize("mode", MODES)
def test_greedy_verification_writes_exactly_what_vanilla_writes(model, runtime, prompts, mode):
    assert_verified_is_vanilla(model, runtime, prompts(1, 5, 32, 17, 2), mode)


@pytest.mark.parametrize("mode", MODES)
def test_greedy_verification_writes_what_vanilla_writes_where_many_drafts_hold(
    agreeing, agreeing_runtime, prompts, mode
):
    assert_verified_is_vanilla(agreeing, agreeing_runtime, prompts(1, 5, 32, 17, 2), mode)


def assert_verified_is_vanilla(model, runtime, batch, mode):
    limits = {"max_new_tokens": 60, "stop_ids": [11], "batch_size": 3}
    vanilla = generate(runtime, batch, VANILLA, **limits)
    verified = generate(runtime, batch, DecodePattern.of(mode), verify="greedy", **limits)
    assert_same_answers(model, VANILLA, batch, [a.ids for a in verified], [a.ids for a in vanilla])


def test_drafts_that_hold_save_backbone_passes(agreeing_runtime, prompts):
    [answer] = generate(agreeing_runtime, prompts(9), DecodePattern.of("turbo"), max_new_tokens=200, verify="greedy")
    assert answer.backbone_passes < 100
    assert sum(answer.accepted) == sum(writer > 0 for writer in answer.writers)
    assert all(kept <= tried for kept, tried in zip(answer.accepted, answer.drafted, strict=True))
    assert 0 < sum(answer.accepted) < sum(answer.drafted)  # some were refused, so something was rolled back


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), length=st.integers(1, 30), limit=st.integers(1, 40), mode=st.sampled_from(MODES))
def test_no_prompt_or_limit_makes_verified_tokens_differ(agreeing, agreeing_runtime, seed, length, limit, mode):
    random = torch.Generator().manual_seed(seed)
    prompt = torch.randint(0, 97, (length,), generator=random).tolist()
    vanilla = generate(agreeing_runtime, [prompt], VANILLA, max_new_tokens=limit)[0]
    verified = generate(agreeing_runtime, [prompt], DecodePattern.of(mode), max_new_tokens=limit, verify="greedy")[0]
    assert_same_answers(agreeing, VANILLA, [prompt], [verified.ids], [vanilla.ids])
    assert len(verified.ids) == limit


def test_verification_holds_under_a_penalty_and_inside_constrained_spans(agreeing, agreeing_runtime, prompts):
    constraint = SpanConstraint(begin=60, end=61, turn_end=2, first_code=64, n_codes=33)
    for sampling in (Greedy, Sampling(repetition_penalty=1.3)):
        choice = {"sampling": sampling, "constraint": constraint}
        limits = choice | {"max_new_tokens": 50}
        batch = [[*prompt, 60] for prompt in prompts(4, 9)]
        vanilla = generate(agreeing_runtime, batch, VANILLA, **limits)
        verified = generate(agreeing_runtime, batch, DecodePattern.of("boost"), verify="greedy", **limits)
        assert_same_answers(agreeing, VANILLA, batch, [a.ids for a in verified], [a.ids for a in vanilla], **choice)


def test_greedy_verification_refuses_a_temperature(runtime):
    with pytest.raises(UserError, match="verify=greedy gives the most likely tokens"):
        generate(runtime, [[1]], VANILLA, max_new_tokens=2, sampling=Sampling(temperature=1.0), verify="greedy")


def test_sampled_verification_at_temperature_zero_is_greedy(agreeing_runtime, prompts):
    batch, limits = prompts(3, 8), {"max_new_tokens": 40}
    greedy = generate(agreeing_runtime, batch, DecodePattern.of("boost"), verify="greedy", **limits)
    sampled = generate(agreeing_runtime, batch, DecodePattern.of("boost"), verify="sample", **limits)
    assert [a.ids for a in sampled] == [a.ids for a in greedy]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_speculative_draws_follow_the_backbones_distribution(seed):
    """Exactly, not by counting: the chance of each first token is summed over all drafts and all random numbers."""
    random = torch.Generator().manual_seed(seed)
    q, p = (torch.softmax(2 * torch.randn(6, generator=random), 0) for _ in range(2))
    kept = torch.minimum(q, p)
    rest = (p - q).clamp_min(0)
    assert torch.allclose(kept + (1 - kept.sum()) * rest / rest.sum(), p, atol=1e-6)

    class Scripted(Sampler):
        def uniform(self):
            return self.next.pop(0)

    sampler = Scripted(Sampling(temperature=1.0))
    for column in range(6):
        chance = min(1.0, float(p[column] / q[column]))
        sampler.next = [max(0.0, chance - 1e-3), 0.5]
        assert speculative([column], [q], [p, p], sampler)[0] == 1
        if chance < 1:
            sampler.next = [min(1.0, chance + 1e-3), 0.5]
            count, replacement = speculative([column], [q], [p, p], sampler)
            assert count == 0 and rest[replacement] > 0


FILTERED = Sampling(temperature=10.0, top_k=12, top_p=0.9)


@pytest.mark.parametrize(
    "settings_", [Sampling(temperature=8.0), pytest.param(FILTERED, marks=[pytest.mark.slow, pytest.mark.ci])]
)
def test_sampled_verification_keeps_the_sampling_distribution(agreeing_model, settings_):
    """Pairs of the second and third token over 3000 seeds, verified against Vanilla: a chi-squared test."""
    runtime = Runtime(agreeing_model(noise=0.1))
    runtime.costs = PassCosts(backbone=1.0, backbone_row=0.0, head=0.0, head_row=0.0)  # every draft pays
    prompt, draws = [7, 8, 9], 3000

    def pairs(pattern, verify, first_seed):
        samplings = [
            Sampling(settings_.temperature, settings_.top_k, settings_.top_p, seed=first_seed + i) for i in range(draws)
        ]
        answers = generate(
            runtime, [prompt] * draws, pattern, max_new_tokens=4, sampling=samplings, verify=verify, batch_size=100
        )
        return Counter(a.ids[1] * 100 + a.ids[2] for a in answers), sum(sum(a.accepted) for a in answers)

    plain, _ = pairs(VANILLA, "none", 0)
    verified, accepted = pairs(DecodePattern.of([1, 3]), "sample", 10_000)
    assert accepted > draws / 10
    common = [pair for pair in plain if plain[pair] + verified[pair] >= 20]
    others = [draws - sum(counts[pair] for pair in common) for counts in (plain, verified)]
    table = [(plain[pair], verified[pair]) for pair in common] + [tuple(others)] * (sum(others) > 0)
    statistic = sum((a - b) ** 2 / (a + b) for a, b in table)
    freedom = len(table) - 1
    # Wilson and Hilferty's normal approximation of chi-squared; 4 standard deviations
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert freedom > 10 and z < 4


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_agreeing_counts_the_common_beginning(drafts, own):
    count = agreeing(drafts, own)
    assert drafts[:count] == own[:count]
    assert count == len(drafts) or drafts[count] != own[count]
