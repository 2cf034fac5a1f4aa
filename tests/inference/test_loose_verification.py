"""verify=groups: exact where its slack is 0, and exact over groups of codes when sampling."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from vita_audio_pl.codecs.mel_vq import MelVQ, MelVQConfig
from vita_audio_pl.config.decoding import SLACK
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Greedy, Runtime, Sampling, SpanConstraint, generate
from vita_audio_pl.inference.code_groups import CodeGroups, verification
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.sampling import Sampler
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.inference.verify import speculative
from vita_audio_pl.interleave import DecodePattern

FIRST_CODE, N_CODES = 64, 33
CONSTRAINT = SpanConstraint(begin=60, end=61, turn_end=2, first_code=FIRST_CODE, n_codes=N_CODES)
BOOST = DecodePattern.of("boost")


def vectors(n=N_CODES, width=3, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def looseness(slack):
    return {"verify": "groups", "groups": CodeGroups(vectors(), FIRST_CODE, slack)}


@pytest.mark.parametrize("slack", [0.0, 0.3, 1.0])
def test_groups_are_the_neighbours_that_a_plain_comparison_finds(slack):
    groups, units = CodeGroups(vectors(), FIRST_CODE, slack), vectors() / vectors().norm(dim=1, keepdim=True)
    for one, other in itertools.product(range(N_CODES), repeat=2):
        near = one == other or slack > 0 and float(units[one] @ units[other]) >= 1 - slack
        assert groups.alike(FIRST_CODE + one, FIRST_CODE + other) == near
        assert (other + 5 in groups.group(one + 5, first=5)) == near
    assert not groups.alike(FIRST_CODE, 61) and not groups.alike(-1, FIRST_CODE)
    assert groups.group(3, first=5).tolist() == [3]


@pytest.mark.parametrize("seed", range(10))
def test_sampled_groups_are_distributed_exactly_as_the_backbones(seed):
    """By enumeration: over all drafts, all groups of a draft, both outcomes of the coin and all replacements."""
    random = torch.Generator().manual_seed(seed)
    first, n_codes, choices = 1, 5, 8  # a token before the codes and two behind them
    groups = CodeGroups(vectors(n_codes, 2, seed), 100, 0.4)
    q, p = (torch.softmax(1.5 * torch.randn(choices, generator=random), 0) for _ in range(2))
    members = [groups.group(column, first).tolist() for column in range(choices)]
    plain = [sum(float(p[t]) / len(members[t]) for t in members[g]) for g in range(choices)]
    assert any(len(group) > 1 for group in members)

    class Scripted(Sampler):
        def __init__(self):
            self.settings, self.coins, self.drawn = Sampling(temperature=1.0), [], []

        def uniform(self):
            return self.coins.pop(0)

        def draw(self, probabilities):
            self.drawn.append(probabilities / probabilities.sum())
            return self.choose.pop(0)

    def outcome(draft, group, coin, choose=(0, 0, 0)):
        sampler = Scripted()
        pick = (members[draft].index(group) + 0.5) / len(members[draft])
        sampler.coins = [*([pick] if len(members[draft]) > 1 else []), coin]
        sampler.choose = list(choose)
        kept, column = speculative([draft], [q], [p, p], sampler, (groups, [first]))
        return kept, column, sampler.drawn

    found = torch.zeros(choices, dtype=torch.float64)  # chance of each group
    for draft in range(choices):
        for group in members[draft]:
            drawn_q = sum(float(q[t]) / len(members[t]) for t in members[group])
            chance = min(1.0, plain[group] / drawn_q)
            reached = float(q[draft]) / len(members[draft])
            assert outcome(draft, group, max(0.0, chance - 1e-4))[0] == 1
            found[group] += reached * chance
            if chance < 1:
                for other in range(choices):
                    _, column, drawn = outcome(draft, group, min(1 - 1e-9, chance + 1e-4), (other, 0))
                    assert column in members[other]
                    found[other] += reached * (1 - chance) * float(drawn[0][other])
                    if len(members[other]) > 1:
                        wanted = torch.tensor([float(p[t]) / len(members[t]) for t in members[other]])
                        assert torch.allclose(drawn[1], wanted / wanted.sum(), atol=1e-6)
    assert torch.allclose(found, torch.tensor(plain, dtype=torch.float64), atol=1e-6)


def test_a_decoder_draws_groups_as_vanilla_does(agreeing_model):
    """Groups that do not overlap, so that a token tells its group: frequencies over 2000 seeds, a chi-squared test."""
    runtime = Runtime(agreeing_model(noise=0.1))
    runtime.costs = PassCosts(backbone=1.0, backbone_row=0.0, head=0.0, head_row=0.0)  # every draft pays
    prompt, draws = [7, 8, 9, 60], 2000
    corners = torch.eye(6)[torch.arange(N_CODES) % 6]
    loose = {"verify": "groups", "groups": CodeGroups(corners, FIRST_CODE, 0.1)}

    def second_groups(pattern, first_seed, **how):
        samplings = [Sampling(temperature=6.0, seed=first_seed + n) for n in range(draws)]
        answers = generate(
            runtime, [prompt] * draws, pattern, max_new_tokens=3, sampling=samplings, batch_size=100,
            constraint=CONSTRAINT, **how,
        )  # fmt: skip
        second = [a.ids[1] for a in answers if len(a.ids) > 1]
        return Counter((t - FIRST_CODE) % 6 if t >= FIRST_CODE else -1 for t in second), answers

    plain, _ = second_groups(DecodePattern.of("vanilla"), 0)
    drafted, answers = second_groups(DecodePattern.of([1, 3]), 10_000, **loose)
    assert sum(a.accepted[0] for a in answers) > draws / 2
    statistic = sum((plain[g] - drafted[g]) ** 2 / (plain[g] + drafted[g]) for g in plain)
    assert len(plain) == 7 and statistic < 22.5  # 6 degrees of freedom: 1 in 1000


@pytest.mark.parametrize("sampling", [Greedy, Sampling(repetition_penalty=1.3), Sampling(temperature=4.0, seed=3)])
def test_without_slack_tokens_are_those_of_exact_verification(agreeing_runtime, prompts, sampling):
    batch = [[*prompt, 60] for prompt in prompts(4, 9, 17)]
    limits = {"max_new_tokens": 50, "constraint": CONSTRAINT, "sampling": sampling}
    exact = "greedy" if sampling.greedy else "sample"
    expected = generate(agreeing_runtime, batch, BOOST, verify=exact, **limits)
    found = generate(agreeing_runtime, batch, BOOST, **looseness(0.0), **limits)
    assert [a.ids for a in found] == [a.ids for a in expected]
    assert [a.accepted for a in found] == [a.accepted for a in expected]


@pytest.mark.parametrize("temperature", [0.0, 4.0])
def test_slack_keeps_more_drafts_and_what_is_decoded_beside_it_does_not_matter(agreeing_runtime, prompts, temperature):
    batch = [[*prompt, 60] for prompt in prompts(4, 9, 17)]
    limits = {"max_new_tokens": 60, "constraint": CONSTRAINT, "sampling": Sampling(temperature)}

    def kept(slack):
        together = generate(agreeing_runtime, batch, BOOST, **looseness(slack), **limits)
        alone = [generate(agreeing_runtime, [one], BOOST, **looseness(slack), **limits)[0] for one in batch]
        assert [a.ids for a in together] == [a.ids for a in alone]
        return sum(sum(a.accepted) for a in together) / sum(sum(a.drafted) for a in together)

    assert kept(0.9) > kept(0.0)


def test_groups_need_a_codebook_of_the_models_codes():
    class Words:
        n_codes, first_code = 512, FIRST_CODE

    class Silent:
        name = "transformers"

    weights = {"mean": torch.zeros(800), "basis": torch.eye(800, 64), "centroids": vectors(512, 64)}
    codec = MelVQ(MelVQConfig(decoder_width=0, decoder_components=0), weights)
    found = verification("groups", None, lambda: codec, Words())
    assert found["groups"].n_codes == 512 and found["groups"].slack == SLACK
    assert verification("greedy", 0.3, lambda: None, Words()) == {"verify": "greedy"}
    for wrong, match in ((lambda: None, "no codec"), (Silent, "codec transformers has none")):
        with pytest.raises(UserError, match=match):
            verification("groups", None, wrong, Words())
    Words.n_codes = 100
    with pytest.raises(UserError, match="512 codes and the model 100"):
        verification("groups", None, lambda: codec, Words())
    assert np.array_equal(codec.codebook(), vectors(512, 64).numpy())
    with pytest.raises(UserError, match="slack=1 makes nearly all 6000 codes"):
        CodeGroups(torch.rand(6000, 2), 0, 1.0)
    with pytest.raises(UserError, match="verify=groups needs groups of codes"):
        Options(BOOST, 2, verify="groups")
