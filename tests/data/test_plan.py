from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio_pl.data.plan import Change, Place, Plan, PlannedSource
from vita_audio_pl.errors import UserError


def source(name: str, n: int, ratio: float = 1.0, num: int | None = None, longest: int = 60, seed: int = 0):
    lengths = np.random.default_rng([seed, *name.encode()]).integers(5, longest, n)
    return PlannedSource(name, lengths.astype(np.uint32), ratio, num)


def samples_of_epochs(plan: Plan, epochs: int, phase: int = 0) -> Counter[tuple[int, int]]:
    """How often each (source, sample) comes in the first epochs, with the row that waits for the next epoch."""
    count: Counter[tuple[int, int]] = Counter()
    for epoch in range(epochs):
        for number in range(plan.phases[phase].windows):
            window = plan.window(phase, epoch, number)
            count.update(zip(window.source.tolist(), window.sample.tolist(), strict=True))
    tail = plan._tail(phase, epochs - 1)
    count.update(zip(tail[0].tolist(), tail[1].tolist(), strict=True))
    return count


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.05, 0.3, 1.0, 1.5, 2.0])), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from([40, 200, 5000]),
    st.integers(0, 3),
)
def test_an_epoch_takes_every_sample_as_often_as_its_ratio_says(
    sizes: list[tuple[int, float]], epochs: int, window: int, seed: int
) -> None:
    sources = [source(f"s{i}", n, ratio) for i, (n, ratio) in enumerate(sizes)]
    count = samples_of_epochs(Plan(sources, 64, seed, window), epochs)
    for number, (n, ratio) in enumerate(sizes):
        taken = [count[number, sample] for sample in range(n)]
        assert sum(taken) == round(n * ratio * epochs)
        assert max(taken) - min(taken) <= 1  # floor or ceiling of ratio x epochs, for every sample


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400), st.sampled_from([50, 400, 5000]), st.integers(0, 3))
def test_the_order_goes_on_from_any_place(start: int, window: int, seed: int) -> None:
    sources = [source("a", 150), source("b", 90, 0.4), source("c", 40, 2.0)]
    rows = list(islice(Plan(sources, 64, seed, window).rows(Place()), start + 40))
    place = rows[start - 1][2] if start else Place()
    resumed = list(islice(Plan(sources, 64, seed, window).rows(place), 40))
    for (s1, n1, p1), (s2, n2, p2) in zip(rows[start:], resumed, strict=True):
        assert s1.tolist() == s2.tolist() and n1.tolist() == n2.tolist() and p1 == p2


def test_rows_are_never_overfull_and_nearly_full() -> None:
    plan = Plan([source("a", 4000), source("b", 3000, 0.5)], 256, 0, 1000)
    fill = [
        sum(int(plan.sources[s].tokens[n]) for s, n in zip(a, b, strict=True))
        for a, b, _ in islice(plan.rows(Place()), 500)
    ]
    assert max(fill) <= 256
    assert np.mean(fill) / 256 > 0.99


def test_each_source_has_its_share_in_every_thousand_rows() -> None:
    lengths = {"asr": (5.0, 0.4), "tts": (5.3, 0.5), "text": (5.8, 1.0), "long": (8.3, 0.6)}
    sizes = {"asr": 90_000, "tts": 40_000, "text": 30_000, "long": 3_000}
    rng = np.random.default_rng(0)
    sources = [
        PlannedSource(name, np.clip(rng.lognormal(mu, s, sizes[name]), 20, 8192).astype(np.uint32), ratio)
        for (name, (mu, s)), ratio in zip(lengths.items(), (1.0, 0.5, 1.0, 2.0), strict=True)
    ]
    plan = Plan(sources, 8192, 0)
    tokens = np.zeros(4)
    for s, n, _ in islice(plan.rows(Place()), 1000):
        for number in range(4):
            tokens[number] += sources[number].tokens[n[s == number]].sum()
    assert np.abs(tokens / tokens.sum() - plan.phases[0].shares).max() < 0.005


def test_seeds_and_epochs_give_other_orders() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return Plan([source("a", 500)], 64, seed).window(0, epoch, 0).sample[:50].tolist()

    assert first(0, 0) == first(0, 0)
    assert len({tuple(first(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_num_limits_a_source_to_the_same_seeded_choice_in_every_epoch() -> None:
    count = samples_of_epochs(Plan([source("a", 1000, num=30), source("b", 50)], 64, 0), 3)
    chosen = {sample for number, sample in count if number == 0}
    assert len(chosen) == 30 and all(count[0, sample] == 3 for sample in chosen)


def test_samples_of_no_tokens_are_never_planned() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 300).astype(np.uint32)
    lengths[::3] = 0
    count = samples_of_epochs(Plan([PlannedSource("a", lengths, 1.0)], 64, 0, 50), 2)
    assert {sample for _, sample in count} == set(np.flatnonzero(lengths).tolist())


def test_shares_can_change_in_the_middle_and_nothing_is_lost_or_repeated() -> None:
    sources = [source("a", 2000), source("b", 2000, 0.5)]
    plan = Plan(sources, 64, 0, 300)
    rows = plan.rows(Place())
    before = list(islice(rows, 60))
    at = before[-1][2]
    plan.change(Change(at.epoch, at.window, (0.25, 2.0)))
    after = list(islice(rows, 2000))

    again = Plan(sources, 64, 0, 300, plan.changes)
    resumed = list(islice(again.rows(before[-1][2]), 2000))
    assert [row[1].tolist() for row in resumed] == [row[1].tolist() for row in after]

    def share(rows: list) -> float:
        tokens = [sum(int(sources[s].tokens[n]) for s, n in zip(a, b, strict=True) if s == 1) for a, b, _ in rows]
        return sum(tokens) / (64 * len(rows))

    new_phase = [row for row in after if row[2].phase == 1]
    assert abs(share(before) - 1 / 3) < 0.05 and abs(share(new_phase) - 8 / 9) < 0.05
    seen = Counter(n for a, b, _ in before + after for s, n in zip(a.tolist(), b.tolist(), strict=True) if s == 0)
    assert max(seen.values()) - min(seen[n] for n in range(2000)) <= 1


def test_a_mixture_without_a_usable_sample_is_refused() -> None:
    with pytest.raises(UserError, match="no sample"):
        Plan([PlannedSource("a", np.zeros(10, np.uint32), 1.0)], 64, 0)


def test_an_epoch_smaller_than_a_row_still_makes_rows() -> None:
    plan = Plan([PlannedSource("a", np.array([20], np.uint32), 1.0)], 64, 0)
    rows = list(islice(plan.rows(Place()), 5))
    assert all(len(sample) == 3 for _, sample, _ in rows)
