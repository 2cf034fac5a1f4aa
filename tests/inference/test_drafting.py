"""Drafting goes as far as it pays, and loses next to nothing where it never does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio_pl.inference import Runtime, generate
from vita_audio_pl.inference.drafting import CREDIT_PER_TOKEN, FIRST_CREDIT, Drafting, PassCosts
from vita_audio_pl.interleave import DecodePattern

HEADS = 10
COSTS = PassCosts(backbone=20.0, backbone_row=1.5, head=4.0, head_row=0.1)


def played(costs, kept_if_drafted, rounds, always=False, entropies=lambda head: None):
    """Cost of some rounds and tokens written; `kept_if_drafted(round, head)` says which drafts hold."""
    drafting, cost, tokens, lag = Drafting(costs, HEADS), 0.0, 0, [0] * HEADS
    for number in range(rounds):
        drafted = 0
        while drafted < HEADS and (always or drafting.pays(1 + lag[drafted])):
            cost += costs.head + lag[drafted] * costs.head_row + costs.backbone_row
            drafting.drafted(1 + lag[drafted], entropies(drafted))
            lag[drafted] = 0
            drafted += 1
        kept = next((head for head in range(drafted) if not kept_if_drafted(number, head)), drafted)
        lag = [rows + kept + (head >= drafted) for head, rows in enumerate(lag)]
        drafting.settled(kept)
        cost, tokens = cost + costs.backbone, tokens + kept + 1
    return cost, tokens


@given(
    st.builds(
        PassCosts,
        backbone=st.floats(1, 100),
        backbone_row=st.floats(0, 50),
        head=st.floats(0, 100),
        head_row=st.floats(0, 10),
    ),
    st.lists(st.lists(st.booleans(), min_size=HEADS, max_size=HEADS), min_size=1, max_size=60),
    st.lists(st.floats(0, 10), min_size=HEADS, max_size=HEADS),
)
def test_whatever_the_heads_do_little_is_lost_against_vanilla(costs, holds, entropies):
    cost, tokens = played(costs, lambda number, head: holds[number][head], len(holds), entropies=entropies.__getitem__)
    vanilla = tokens * costs.backbone
    assert cost <= (1 + CREDIT_PER_TOKEN) * vanilla + FIRST_CREDIT * costs.backbone + 1e-6


@pytest.mark.parametrize("costs", [COSTS, PassCosts(1.0, 0.12, 0.19, 0.003), PassCosts(1.0, 0.05, 0.4, 0.012)])
def test_heads_that_never_hold_cost_little_of_an_answer_of_ten_seconds(costs):
    cost, tokens = played(costs, lambda number, head: False, 128)
    assert tokens == 128 and cost < 1.025 * tokens * costs.backbone


def test_good_heads_draft_on():
    for holds in (lambda number, head: True, lambda number, head: head < 6, lambda number, head: (number + head) % 9):
        (some, written), (all_, drafted) = (played(COSTS, holds, 40, always) for always in (False, True))
        assert some / written < 1.05 * all_ / drafted


def test_heads_that_become_good_are_noticed():
    cost, tokens = played(COSTS, lambda number, head: number > 100, 400)
    assert tokens > 1500 and cost < 0.75 * tokens * COSTS.backbone


def test_how_sure_a_head_is_decides_where_to_stop():
    """The third head holds only when it is sure: unsure, the draft ends with it; sure, it goes on."""
    sure, unsure = Drafting(COSTS, HEADS), Drafting(COSTS, HEADS)
    for drafting, third in ((sure, 0.01), (unsure, 4.0)):
        for number in range(12):
            is_sure = number % 2 == 0
            for head in range(4):
                drafting.drafted(1, 0.01 if head != 2 or is_sure else 4.0)
            drafting.settled(4 if is_sure else 2)
        for head in range(3):
            assert drafting.pays(1)
            drafting.drafted(1, third if head == 2 else 0.01)
    assert sure.pays(1) and not unsure.pays(1)


@pytest.mark.parametrize("verify", ["greedy", "sample"])
def test_untrained_heads_hardly_run_and_the_tokens_stay(tiny_model, prompts, verify):
    runtime = Runtime(tiny_model())
    runtime.costs = COSTS
    [prompt] = prompts(9)
    [vanilla] = generate(runtime, [prompt], DecodePattern.of("vanilla"), max_new_tokens=100)
    [verified] = generate(runtime, [prompt], DecodePattern.of("turbo"), max_new_tokens=100, verify=verify)
    assert verified.ids == vanilla.ids and 0 < verified.head_passes < 20
