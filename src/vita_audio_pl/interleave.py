"""The text-audio interval ratio and the decoding pattern: how text and audio alternate, and who writes which token.

Rendering, losses, decoding and reports all use these two classes (VITA-Audio, arXiv 2505.03739).
"""

import math
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vita_audio_pl.errors import UserError

IntArray: TypeAlias = NDArray[np.integer[Any]]

_MOST_RUNS, _LONGEST_RUN = 1000, 10**9
MARKERS_PER_CHUNK = 2
"""Every chunk of codes is enclosed in one begin and one end marker; the ratio's audio numbers include both."""

NAMED_RATIOS: dict[str, tuple[int, ...]] = {
    "turbo": (1, 10, 4, 10),
    "boost": (1, 10, 4, 10),
    "balance": (1, 4, 3, 8, 4, 10),
}
NAMED_PATTERNS: dict[str, tuple[int, ...]] = {
    "turbo": (1, 10),
    "boost": (1, 10, 4, 10),
    "balance": (1, 4, 3, 8, 4, 10),
    "vanilla": (8192, 0),
}


@dataclass(frozen=True)
class IntervalRatio:
    """Runs `(t1, a1, ..., tn, an)`: t text tokens, then a audio tokens (both markers included); the last pair repeats.

    The shorter of text and audio determines the number of chunks; the last chunk takes the rest of both.

    Raises:
        UserError: the runs do not come in pairs, a t is below 1, or an a leaves no room for a code (below 3).
    """

    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", _whole_numbers(self.runs, "text_audio_interval_ratio"))
        shown = list(self.runs)
        if not self.runs or len(self.runs) % 2:
            raise UserError(
                f"text_audio_interval_ratio={shown} has {len(self.runs)} numbers; "
                "give pairs of text tokens and audio tokens, such as [1,10,4,10]"
            )
        if min(self.runs[0::2]) < 1:
            raise UserError(f"text_audio_interval_ratio={shown} has a text run below 1; every text run needs a token")
        if min(self.runs[1::2]) <= MARKERS_PER_CHUNK:
            raise UserError(
                f"text_audio_interval_ratio={shown} has an audio run below 3; an audio run counts its begin and end "
                "markers, so 3 is one code and 10 is eight"
            )

    @classmethod
    def of(cls, value: Sequence[int] | str) -> "IntervalRatio":
        """From a name (`boost`, `turbo`, `balance`), a list, or a list as text (`1,10,4,10`)."""
        return cls(_runs_of(value, NAMED_RATIOS, "text_audio_interval_ratio"))

    @classmethod
    def behind(cls, pattern: "DecodePattern") -> "IntervalRatio":
        """The ratio that models with a published decoding pattern were trained with; Boost's for any other pattern."""
        known = (NAMED_RATIOS[name] for name in NAMED_RATIOS if NAMED_PATTERNS[name] == pattern.runs)
        return cls(next(known, NAMED_RATIOS["boost"]))

    @cached_property
    def text_runs(self) -> tuple[int, ...]:
        """Text tokens per chunk; the last repeats."""
        return self.runs[0::2]

    @cached_property
    def code_runs(self) -> tuple[int, ...]:
        """Codes per chunk, without markers; the last repeats."""
        return tuple(a - MARKERS_PER_CHUNK for a in self.runs[1::2])

    @overload
    def chunks(self, n_text: int, n_codes: int) -> int: ...
    @overload
    def chunks(self, n_text: IntArray, n_codes: IntArray) -> IntArray: ...
    def chunks(self, n_text: Any, n_codes: Any) -> Any:
        """Number of audio spans of an answer; 1 for audio without text, 0 without codes. Takes numbers or int64 arrays."""
        if isinstance(n_text, np.ndarray) or isinstance(n_codes, np.ndarray):
            text, codes = np.asarray(n_text, np.int64), np.asarray(n_codes, np.int64)
            either = np.minimum(_runs_needed(text, self.text_runs), _runs_needed(codes, self.code_runs))
            return np.where(codes > 0, np.where(text > 0, either, 1), 0)
        if n_codes <= 0:
            return 0
        if n_text <= 0:
            return 1
        return min(_runs_needed_scalar(n_text, self.text_runs), _runs_needed_scalar(n_codes, self.code_runs))

    @overload
    def length(self, n_text: int, n_codes: int) -> int: ...
    @overload
    def length(self, n_text: IntArray, n_codes: IntArray) -> IntArray: ...
    def length(self, n_text: Any, n_codes: Any) -> Any:
        """Exact number of tokens of the interleaved answer, markers included; without codes only the text.

        Numbers give a number, arrays give an array.
        """
        markers = MARKERS_PER_CHUNK * self.chunks(n_text, n_codes)
        return markers + n_text + n_codes

    def interleave(self, text: ArrayLike, codes: ArrayLike, begin: int, end: int) -> NDArray[np.int32]:
        """Text and codes in alternating runs, with `begin` and `end` around each run of codes.

        Args:
            text: `(n_text,)` token ids; `codes`: `(n_codes,)` ids of the codes.

        Returns:
            `(length(n_text, n_codes),)` int32. Without codes only the text; without text one span of codes.
        """
        text_ids, code_ids = np.asarray(text), np.asarray(codes)
        out = np.empty(self.length(text_ids.size, code_ids.size), np.int32)
        self.interleave_into(out, text_ids, code_ids, begin, end)
        return out

    def interleave_into(
        self, out: NDArray[np.int32], text: IntArray, codes: IntArray, begin: int, end: int, code_offset: int = 0
    ) -> None:
        """Same as `interleave`, written into `out` (`length` tokens), with `code_offset` added to each code."""
        n_text, n_codes = text.size, codes.size
        n = self.chunks(n_text, n_codes)
        if n == 0:
            out[:] = text
            return
        text_done = codes_done = at = 0
        if n > 1:
            slots = _slots(self.runs, _roomy(n - 1, len(self.runs) // 2))
            text_done, codes_done = slots.text_until[n - 2], slots.codes_until[n - 2]
            at = text_done + codes_done + MARKERS_PER_CHUNK * (n - 1)
            out[slots.text[:text_done]] = text[:text_done]
            out[slots.codes[:codes_done]] = codes[:codes_done]
            out[slots.begin[: n - 1]] = begin
            out[slots.end[: n - 1]] = end
            if code_offset:
                out[slots.codes[:codes_done]] += code_offset
        first_code = at + n_text - text_done + 1
        out[at : first_code - 1] = text[text_done:]
        out[first_code - 1] = begin
        out[first_code:-1] = codes[codes_done:]
        out[first_code:-1] += code_offset
        out[-1] = end

    def layout(self, n_text: int, n_codes: int) -> NDArray[np.int32]:
        """Gather indices `(length,)` int32 into the row `[text | codes | begin | end]`, if neither part is empty."""
        both = n_text + n_codes
        return self.interleave(np.arange(n_text), np.arange(n_text, both), begin=both, end=both + 1)


def deinterleave(ids: ArrayLike, begin: int, end: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Text and codes of an interleaved answer, in order: the inverse of `IntervalRatio.interleave`.

    Codes of an unfinished span are included; a second begin marker or a stray end marker is ignored.
    """
    row = np.asarray(ids, dtype=np.int32)
    opens, closes = row == begin, row == end
    markers = opens | closes
    # the state after each token follows from the last marker, so a stray marker cannot shift everything after it
    last_marker = np.maximum.accumulate(np.where(markers, np.arange(row.size), -1)) if row.size else np.empty(0, int)
    inside = (last_marker >= 0) & opens[last_marker] if row.size else np.empty(0, bool)
    return row[~inside & ~markers], row[inside & ~markers]


@dataclass(frozen=True)
class DecodePattern:
    """Runs `(M, m, M, m, ...)`: M tokens written by the backbone, then m by the heads; the last pair repeats.

    Token 0 is the one from the prefill. The writer depends on the position only.

    Raises:
        UserError: the runs do not come in pairs, an M is below 1, or an m is below 0.
    """

    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", _whole_numbers(self.runs, "decode_pattern"))
        shown = list(self.runs)
        if not self.runs or len(self.runs) % 2:
            raise UserError(
                f"decode_pattern={shown} has {len(self.runs)} numbers; "
                "give pairs of backbone tokens and head tokens, such as [1,10,4,10]"
            )
        if min(self.runs[0::2]) < 1:
            raise UserError(
                f"decode_pattern={shown} has a backbone run below 1; heads need a backbone pass to start on"
            )
        if min(self.runs[1::2]) < 0:
            raise UserError(f"decode_pattern={shown} has a negative head run; 0 means that no head writes")

    @classmethod
    def of(cls, value: Sequence[int] | str) -> "DecodePattern":
        """From a mode (`turbo`, `boost`, `balance`, `vanilla`), a list, or a list as text (`1,10,4,10`)."""
        return cls(_runs_of(value, NAMED_PATTERNS, "decode_pattern"))

    @property
    def uses_heads(self) -> bool:
        """Whether heads write any token, where there are heads."""
        return any(self.runs[1::2])

    def writers(self, length: int, n_heads: int) -> NDArray[np.int8]:
        """Writer of each of the first `length` tokens: 0 the backbone, k + 1 head k. `(length,)` int8, read-only.

        If a run has more head tokens than there are heads, the backbone writes one in between and the heads start
        again.
        """
        if not 0 <= n_heads < np.iinfo(np.int8).max:
            raise UserError(f"{n_heads} heads cannot be numbered; use 0 to {np.iinfo(np.int8).max - 1}")
        return _writers(self.runs, n_heads, max(64, 1 << max(length - 1, 0).bit_length()))[:length]


@dataclass(frozen=True)
class _Slots:
    """Positions of text, codes and markers in an answer of many full chunks (a prefix for every shorter answer)."""

    text: NDArray[np.int64]
    codes: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    text_until: list[int]
    codes_until: list[int]


def _roomy(chunks: int, pairs: int) -> int:
    """A number of chunks to lay out, rounded up so that few layouts serve all lengths.

    At least the last pair: its runs may be far longer than anything requested so far.
    """
    return chunks if chunks < pairs else 1 << chunks.bit_length()


@lru_cache(maxsize=128)
def _slots(runs: tuple[int, ...], chunks: int) -> _Slots:
    """Positions of all tokens in `chunks` full chunks."""
    text_runs, code_runs = _repeat_last(runs[0::2], chunks), _repeat_last(runs[1::2], chunks) - MARKERS_PER_CHUNK
    text_until, codes_until = np.cumsum(text_runs), np.cumsum(code_runs)
    text_before, codes_before = text_until - text_runs, codes_until - code_runs
    chunk = np.arange(chunks)
    start = text_before + codes_before + MARKERS_PER_CHUNK * chunk
    begin = start + text_runs
    text_chunk, codes_chunk = np.repeat(chunk, text_runs), np.repeat(chunk, code_runs)
    return _Slots(
        text=(start - text_before)[text_chunk] + np.arange(text_chunk.size),
        codes=(begin + 1 - codes_before)[codes_chunk] + np.arange(codes_chunk.size),
        begin=begin,
        end=begin + 1 + code_runs,
        text_until=text_until.tolist(),
        codes_until=codes_until.tolist(),
    )


@lru_cache(maxsize=128)
def _writers(runs: tuple[int, ...], n_heads: int, length: int) -> NDArray[np.int8]:
    pieces: list[NDArray[np.int64]] = []
    written, pair = 0, 0
    while written < length:
        backbone, heads = runs[2 * pair : 2 * pair + 2]
        backbone, heads = min(backbone, length), min(heads, length)
        slot = np.arange(heads) % (n_heads + 1)
        pieces += [np.zeros(backbone, np.int64), np.where(slot < n_heads, slot + 1, 0)]
        written += backbone + heads
        pair = min(pair + 1, len(runs) // 2 - 1)
    letters = np.concatenate(pieces)[:length].astype(np.int8)
    letters.setflags(write=False)
    return letters


def _repeat_last(runs: tuple[int, ...], count: int) -> NDArray[np.int64]:
    return np.asarray([runs[min(i, len(runs) - 1)] for i in range(count)], np.int64)


def _runs_needed(count: NDArray[np.int64], runs: tuple[int, ...]) -> NDArray[np.int64]:
    """Number of runs that hold `count` tokens, the last run repeating; elementwise."""
    needed = np.zeros(count.shape, np.int64)
    before = 0
    for run in runs[:-1]:
        needed += count > before
        before += run
    return needed + np.maximum(-((before - count) // runs[-1]), 0)


def _runs_needed_scalar(count: int, runs: tuple[int, ...]) -> int:
    for index, run in enumerate(runs[:-1]):
        if count <= run:
            return index + 1
        count -= run
    return len(runs) - 1 + math.ceil(count / runs[-1])


def _runs_of(value: Sequence[int] | str, named: dict[str, tuple[int, ...]], key: str) -> tuple[int, ...]:
    if not isinstance(value, str):
        if not isinstance(value, list | tuple) or len(value) > _MOST_RUNS:
            raise UserError(f"{key} is {reprlib.repr(value)}; give a list such as [1,10,4,10]")
        return tuple(value)
    name = value.strip().lower()
    if name in named:
        return named[name]
    if re.fullmatch(r"\[?\s*\d+(\s*,\s*\d+)*\s*\]?", name):
        return tuple(int(number) for number in re.findall(r"\d+", name))
    raise UserError(f"{value!r} is no {key}; use one of {', '.join(named)}, or a list such as [1,10,4,10]")


def _whole_numbers(runs: Sequence[int], key: str) -> tuple[int, ...]:
    if any(isinstance(run, bool) or not isinstance(run, int | np.integer) for run in runs):
        raise UserError(f"{key}={list(runs)} must hold whole numbers only, such as [1,10,4,10]")
    if any(abs(int(run)) > _LONGEST_RUN for run in runs):
        raise UserError(f"{key}={list(runs)} has a run of more than {_LONGEST_RUN} tokens; no answer is that long")
    return tuple(int(run) for run in runs)
