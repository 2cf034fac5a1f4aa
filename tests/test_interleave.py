"""The interval ratio and the decoding pattern: published cases, properties for any ratio, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern, IntervalRatio, deinterleave

PARITY = Path(__file__).parent / "parity" / "data"
GRID = [case for case in json.loads((PARITY / "interval_grid.json").read_text()) if case["ratio"]]
TRACES = json.loads((PARITY / "decode_traces.json").read_text())
BEGIN, END = 1, 2

ratios = st.lists(st.tuples(st.integers(1, 6), st.integers(3, 12)), min_size=1, max_size=4).map(
    lambda pairs: IntervalRatio(tuple(number for pair in pairs for number in pair))
)
patterns = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 15)), min_size=1, max_size=4).map(
    lambda pairs: DecodePattern(tuple(number for pair in pairs for number in pair))
)
counts = st.integers(0, 90)


def rows(n_text: int, n_codes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(10, 10 + n_text), np.arange(1000, 1000 + n_codes)


def chunk_by_chunk(ratio: IntervalRatio, text: list[int], codes: list[int]) -> list[int]:
    """The rule read word for word: cut both, let the shorter decide, give the last chunk all that is left."""

    def cut(row: list[int], runs: tuple[int, ...]) -> list[list[int]]:
        chunks, at = [], 0
        while at < len(row):
            run = runs[min(len(chunks), len(runs) - 1)]
            chunks.append(row[at : at + run])
            at += run
        return chunks

    text_chunks = cut(text, ratio.runs[0::2])
    code_chunks = cut(codes, tuple(a - 2 for a in ratio.runs[1::2]))
    n = min(len(text_chunks), len(code_chunks))
    text_chunks[n - 1 :] = [sum(text_chunks[n - 1 :], [])]
    code_chunks[n - 1 :] = [sum(code_chunks[n - 1 :], [])]
    out: list[int] = []
    for some_text, some_codes in zip(text_chunks, code_chunks, strict=True):
        out += [*some_text, BEGIN, *some_codes, END]
    return out


def letter_by_letter(pattern: DecodePattern, length: int, n_heads: int) -> list[int]:
    """The rule read word for word, one token at a time."""
    writers: list[int] = []
    pair, heads_used = 0, 0
    while len(writers) < length:
        backbone, heads = pattern.runs[2 * pair : 2 * pair + 2]
        for letter in ["M"] * backbone + ["m"] * heads:
            if letter == "M" or heads_used == n_heads:
                writers.append(0)
                heads_used = 0
            else:
                heads_used += 1
                writers.append(heads_used)
        pair = min(pair + 1, len(pattern.runs) // 2 - 1)
    return writers[:length]


@pytest.mark.parametrize("case", GRID, ids=lambda case: f"{case['ratio']}-{case['n_text']}-{case['n_audio']}")
def test_interleaving_equals_the_published_one_token_for_token(case):
    text, codes = deinterleave(case["input"], BEGIN, END)
    assert IntervalRatio.of(case["ratio"]).interleave(text, codes, BEGIN, END).tolist() == case["output"]


@given(ratios, st.integers(1, 90), st.integers(1, 300))
def test_interleaving_follows_the_rule_for_any_ratio(ratio, n_text, n_codes):
    text, codes = rows(n_text, n_codes)
    expected = chunk_by_chunk(ratio, text.tolist(), codes.tolist())
    assert ratio.interleave(text, codes, BEGIN, END).tolist() == expected
    source = np.concatenate((text, codes, [BEGIN, END]))
    assert source[ratio.layout(n_text, n_codes)].tolist() == expected


@given(ratios, counts, counts)
def test_text_and_codes_come_back_for_any_ratio(ratio, n_text, n_codes):
    text, codes = rows(n_text, n_codes)
    row = ratio.interleave(text, codes, BEGIN, END)
    assert len(row) == ratio.length(n_text, n_codes)
    text_back, codes_back = deinterleave(row, BEGIN, END)
    assert text_back.tolist() == text.tolist()
    assert codes_back.tolist() == codes.tolist()
    cut_text, cut_codes = deinterleave(row[: len(row) // 2], BEGIN, END)
    assert cut_text.tolist() == text[: cut_text.size].tolist()
    assert cut_codes.tolist() == codes[: cut_codes.size].tolist()


@given(ratios, st.lists(st.tuples(counts, st.integers(0, 60000)), min_size=1, max_size=20))
def test_lengths_of_many_equal_lengths_one_by_one(ratio, pairs):
    text, codes = np.array(pairs, np.uint16).T
    assert ratio.length(text, codes).tolist() == [ratio.length(n_text, n_codes) for n_text, n_codes in pairs]


@pytest.mark.parametrize("trace", TRACES["modes"], ids=lambda trace: trace["name"])
def test_writers_equal_the_traces_of_the_published_decoder(trace):
    expected = [0 if layer == "main" else layer + 1 for layer in trace["layers"]]
    pattern = DecodePattern.of(trace["pattern"])
    assert pattern.writers(len(expected), TRACES["n_heads"]).tolist() == expected


@given(patterns, st.integers(0, 200), st.integers(0, 12))
@settings(deadline=None)
def test_writers_follow_the_rule_for_any_pattern(pattern, length, n_heads):
    assert pattern.writers(length, n_heads).tolist() == letter_by_letter(pattern, length, n_heads)


def test_boost_reads_as_published():
    writers = DecodePattern.of("boost").writers(26, 10).tolist()
    assert writers == [0, *range(1, 11), 0, 0, 0, 0, *range(1, 11), 0]
    assert DecodePattern.of("vanilla").writers(9000, 10).max() == 0


@pytest.mark.parametrize(("name", "n_text", "n_codes"), [("boost", 81, 168), ("balance", 80, 160)])
def test_heads_write_all_audio_and_nothing_else(name, n_text, n_codes):
    row = IntervalRatio.of(name).interleave(np.full(n_text, 0), np.full(n_codes, 9), BEGIN, END)
    assert ((DecodePattern.of(name).writers(row.size, 10) > 0) == (row > 0)).all()


def test_a_run_far_longer_than_any_answer_costs_nothing():
    ratio = IntervalRatio((1, 3, 1, 3, 1, 3, 10**9, 10**9))
    text, codes = rows(9, 9)
    assert ratio.interleave(text, codes, BEGIN, END).tolist() == chunk_by_chunk(ratio, text.tolist(), codes.tolist())


def test_an_answer_with_no_audio_keeps_its_text():
    text = np.arange(10, 17)
    assert IntervalRatio.of("boost").interleave(text, [], BEGIN, END).tolist() == text.tolist()


def test_an_answer_with_no_text_is_one_span():
    assert IntervalRatio.of("balance").interleave([], [7, 8, 9], BEGIN, END).tolist() == [BEGIN, 7, 8, 9, END]


def test_names_lists_and_written_lists_mean_the_same():
    assert IntervalRatio.of("boost") == IntervalRatio.of([1, 10, 4, 10]) == IntervalRatio.of("[1, 10, 4, 10]")
    assert IntervalRatio.of("balance").runs == (1, 4, 3, 8, 4, 10)
    assert DecodePattern.of("turbo") == DecodePattern.of("1,10")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([1, 2], "counts its begin and end markers"),
        ([1, 10, 4, 2], "counts its begin and end markers"),
        ([0, 10], "text run below 1"),
        ([1, 10, 4], "has 3 numbers"),
        ([], "has 0 numbers"),
        ([1.5, 10], "whole numbers"),
        ([True, 10], "whole numbers"),
        ("fast", "is no text_audio_interval_ratio; use one of turbo, boost, balance"),
    ],
)
def test_a_ratio_that_cannot_be_is_refused(value, sentence):
    with pytest.raises(UserError, match=sentence):
        IntervalRatio.of(value)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([0, 10], "backbone run below 1"),
        ([1, -1], "negative head run"),
        ([1], "has 1 numbers"),
        ("slow", "is no decode_pattern"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(value, sentence):
    with pytest.raises(UserError, match=sentence):
        DecodePattern.of(value)
