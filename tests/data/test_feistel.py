import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio_pl.data.feistel import Permutation


@given(st.integers(1, 3000), st.integers(0, 5))
def test_every_element_comes_exactly_once(n: int, key: int) -> None:
    assert sorted(Permutation(n, key)(np.arange(n)).tolist()) == list(range(n))


@given(st.integers(2, 10**9), st.data())
def test_any_part_is_a_part_of_the_whole(n: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n - 1))
    part = np.arange(start, min(n, start + 50))
    permutation = Permutation(n, "key")
    assert permutation(part).tolist() == [int(permutation(np.array([i]))[0]) for i in part]
    assert permutation(part).max() < n


def test_keys_give_orders_that_look_independent() -> None:
    n = 20_000
    one, other = (Permutation(n, seed, "asr")(np.arange(n)).astype(float) for seed in (0, 1))
    assert abs(np.corrcoef(one, np.arange(n))[0, 1]) < 0.03
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    steps = np.diff(one) % n  # a weak mix would show as preferred distances between neighbours
    assert np.histogram(steps, 20, (0, n))[0].std() < 3 * (n / 20) ** 0.5


def test_an_order_never_changes_between_versions() -> None:
    """Runs that are resumed with a newer version depend on it."""
    assert Permutation(10, 0, "asr", "pass", 0)(np.arange(10)).tolist() == [4, 8, 0, 7, 9, 2, 5, 1, 3, 6]


def test_impossible_sizes_are_refused() -> None:
    for n in (0, 2**32 + 1):
        with pytest.raises(ValueError):
            Permutation(n, 0)
