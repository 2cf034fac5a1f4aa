"""Intervals cover the truth as often as they say; comparisons tell apart what differs."""

import numpy as np
import pytest

from vita_audio_pl.evaluation.scores.significance import bootstrap_ratio, compare_paired


def simulated_wer(rng, utterances, error_rate):
    """Utterances of 3 to 12 words whose own error rates vary around the given one."""
    words = rng.integers(3, 13, utterances)
    own = rng.beta(0.5, 0.5 * (1 - error_rate) / error_rate, utterances)
    return rng.binomial(words, own), words


def test_bootstrap_interval_has_the_stated_coverage():
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(400):
        errors, words = simulated_wer(rng, 300, 0.1)
        interval = bootstrap_ratio(errors, words, draws=600, seed=trial)
        hits += interval.low <= 0.1 <= interval.high
    assert 0.91 <= hits / 400 <= 0.98


def test_bootstrap_is_wider_than_words_taken_as_independent():
    errors, words = simulated_wer(np.random.default_rng(1), 300, 0.1)
    interval = bootstrap_ratio(errors, words)
    naive = 2 * 1.96 * np.sqrt(0.1 * 0.9 / words.sum())
    assert interval.high - interval.low > 1.3 * naive


def test_a_perfect_score_does_not_claim_certainty():
    interval = bootstrap_ratio([0] * 300, [5] * 300)
    assert interval.value == 0 and interval.low == 0 and 0.005 < interval.high < 0.02
    interval = bootstrap_ratio([1] * 20, [1] * 20)
    assert interval.value == 1 and interval.high == 1 and 0.8 < interval.low < 0.9


def test_equal_runs_have_p_one_and_no_difference():
    errors, words = simulated_wer(np.random.default_rng(2), 100, 0.2)
    result = compare_paired(errors, errors, words)
    assert (result.value, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_p_value_is_the_exact_one_for_a_small_case():
    # Five utterances, each one error worse: only 2 of the 32 sign patterns are as extreme, p = 1/16.
    result = compare_paired([0] * 5, [1] * 5, [4] * 5, draws=20000)
    assert result.value == pytest.approx(0.25)
    assert result.p_value == pytest.approx(1 / 16, abs=0.01)


def test_rates_with_denominators_of_their_own_are_compared():
    one, two = ([2, 0, 1], [4, 2, 4]), ([1, 1, 1], [8, 2, 2])
    result = compare_paired(one[0], two[0], one[1], two[1])
    assert result.value == pytest.approx(3 / 12 - 3 / 10)
    assert compare_paired(one[0], two[0], one[1], one[1]) == compare_paired(one[0], two[0], one[1])
    equal = compare_paired([2, 0, 1], [2, 0, 1], [4, 2, 4], [4, 2, 4])
    assert (equal.value, equal.p_value) == (0, 1)


def test_false_alarms_come_as_often_as_the_p_value_says():
    rng = np.random.default_rng(3)
    alarms = 0
    for trial in range(300):
        one, words = simulated_wer(rng, 60, 0.2)
        two = rng.binomial(words, np.clip(one / words + rng.normal(0, 0.05, 60), 0, 1))
        swap = rng.random(60) < 0.5  # whichever run got the luckier draw is a coin toss
        first, second = np.where(swap, two, one), np.where(swap, one, two)
        alarms += compare_paired(first, second, words, draws=400, seed=trial).p_value <= 0.05
    assert 0.02 <= alarms / 300 <= 0.09


def test_nothing_to_divide_by_is_an_error():
    with pytest.raises(ValueError, match="nothing to divide"):
        bootstrap_ratio([], [])
    with pytest.raises(ValueError, match="one number per utterance"):
        compare_paired([1], [1, 2], [3, 3])
