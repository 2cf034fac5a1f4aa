import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio_pl.data.packing import best_fit_decreasing


def plain_best_fit(lengths: list[int], capacity: int) -> int:
    """The textbook loop; the number of rows it opens."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [f for f in free if f >= length]
        if fitting:
            free[free.index(min(fitting))] -= length
        else:
            free.append(capacity - length)
    return len(free)


@given(st.lists(st.integers(1, 64), max_size=200))
def test_agrees_with_the_textbook_and_overfills_nothing(lengths: list[int]) -> None:
    row, rows = best_fit_decreasing(np.array(lengths, int), 64)
    assert rows == plain_best_fit(lengths, 64)
    assert len(row) == len(lengths)
    if lengths:
        fill = np.bincount(row, lengths, rows)
        assert fill.max() <= 64 and fill.min() > 0


def test_a_long_tailed_window_is_packed_nearly_full() -> None:
    """Log-normal lengths, median 150 tokens, sigma 1, cut to 20..8192: the mix that the README states."""
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(150), 1.0, 65_536), 20, 8192).astype(int)
    _, rows = best_fit_decreasing(lengths, 8192)
    assert lengths.sum() / (rows * 8192) > 0.995


def test_documents_that_cannot_fit_are_refused() -> None:
    for lengths in ([0, 5], [5, 65]):
        with pytest.raises(ValueError):
            best_fit_decreasing(np.array(lengths), 64)
