"""Comparing what two computations chose, so that no verdict hangs on the processor's rounding.

A batch rounds differently from its members alone, a cache from none, one processor's kernels from another's. Where two
choices are as good as each other but for rounding, either may be taken: a near tie. Everywhere else both have to choose
the same. Repetitions of one computation on one machine are bit-equal, and are compared with `==`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.inference import Greedy, Sampling, SpanConstraint
from vita_audio_pl.inference.sampling import Sampler
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.packed import PackedBatch

NEAR_TIE = 1e-4
"""Scores (logits, distances, probabilities) that lie no further apart are a tie; float32 rounds them by 1e-5 or less."""


def assert_same_choices(found: Any, expected: Any, scores: Tensor | Callable[[], Tensor]) -> None:
    """Choices `(rows,)` that are equal, or as good as the best one.

    scores: `(rows, choices)`, the largest is the best; or what computes them, called only where choices differ.
    """
    ours, theirs = (np.asarray(chosen).reshape(-1) for chosen in (found, expected))
    assert ours.shape == theirs.shape, f"{len(ours)} choices, {len(theirs)} expected"
    differ = np.flatnonzero(ours != theirs)
    if not len(differ):
        return
    table = (scores() if callable(scores) else scores).detach().double().cpu().numpy()
    assert table.shape[0] == len(ours) and not np.isnan(table[differ]).any()
    for row in differ:
        worse = table[row].max() - min(table[row, ours[row]], table[row, theirs[row]])
        assert worse <= NEAR_TIE, f"row {row}: {ours[row]}, not {theirs[row]}, of which one is worse by {worse:.3g}"


def near_ties(scores: Tensor) -> int:
    """Rows of `(rows, choices)` whose two best choices are as good as each other."""
    best = scores.topk(2, dim=-1).values
    return int((best[:, 0] - best[:, 1] <= NEAR_TIE).sum())


def assert_same_answers(
    model: SpeechLM,
    pattern: DecodePattern,
    prompts: Sequence[Sequence[int]],
    found: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
    *,
    sampling: Sampling | Sequence[Sampling] = Greedy,
    constraint: SpanConstraint | None = None,
) -> None:
    """Answers that are equal, each up to its first near tie, after which the two go on from different tokens.

    Args:
        pattern: who wrote the answers; `vanilla` for verified ones.
        sampling: of all, or one each; tokens drawn under `verify=sample` are not known here.
        constraint: for greedy settings.
    """
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    for prompt, ours, theirs, settings in zip(prompts, found, expected, samplings, strict=True):
        if list(ours) == list(theirs):
            continue
        same = [one == other for one, other in zip(ours, theirs, strict=False)]
        assert False in same, f"an answer of {len(ours)} tokens and one of {len(theirs)} begin alike"
        first = same.index(False)
        scores = scores_of(model, pattern, prompt, theirs[: first + 1], sampling=settings, constraint=constraint)
        assert_same_choices(ours[first : first + 1], theirs[first : first + 1], scores[first:])


def assert_most_likely(
    model: SpeechLM, pattern: DecodePattern, prompt: Sequence[int], answer: Sequence[int], clips: Sequence[Tensor] = ()
) -> None:
    """Every token of a greedy answer has the largest logit in the training forward, given the tokens before it."""
    scores = scores_of(model, pattern, prompt, answer, clips)
    assert_same_choices(answer, scores.argmax(-1), scores)


@torch.no_grad()
def scores_of(
    model: SpeechLM,
    pattern: DecodePattern,
    prompt: Sequence[int],
    answer: Sequence[int],
    clips: Sequence[Tensor] = (),
    sampling: Sampling = Greedy,
    constraint: SpanConstraint | None = None,
) -> Tensor:
    """What each token of an answer was chosen by, `(len(answer), vocabulary)`: one training forward of the whole row.

    Token N is written from h^{k+1}_{N-1} of the predictor k whose turn it is. For greedy settings these are logits; for
    drawn tokens, how far outside of each token's share of the probabilities the random number lies, negative.
    """
    assert constraint is None or sampling.greedy
    ids = [*prompt, *answer, *[0] * (model.n_heads + 1)]  # no row sees what follows, but heads need one each
    row = torch.tensor([ids], device=model.lm_head.weight.device)
    zeros, positions = torch.zeros_like(row), torch.arange(len(ids), device=row.device)[None]
    parts = (row, row, positions, zeros.int(), zeros.to(torch.int8), None, 1.0, zeros.to(torch.int16))
    batch = PackedBatch(*parts, names=[["test/0"]], position={}, clips=tuple(clips))
    logits = model.logits(batch)
    writers = pattern.writers(len(answer), model.n_heads).tolist()
    # head k has rows from position k + 1 on
    written = torch.stack([logits[w][0, len(prompt) + n - 1 - w] for n, w in enumerate(writers)]).float().cpu()
    seen, inside = list(prompt), False
    for token in prompt:
        inside = constraint is not None and constraint.after(inside, token)
    sampler, random = Sampler(sampling), torch.Generator().manual_seed(sampling.seed)
    for n, token in enumerate(answer):
        if inside:
            forbidden = torch.ones(written.shape[1], dtype=torch.bool)
            forbidden[list(constraint.allowed)] = False
            written[n, forbidden] = float("-inf")
        if sampling.repetition_penalty != 1:
            before = written[n, seen]
            factor = sampling.repetition_penalty
            written[n, seen] = torch.where(before > 0, before / factor, before * factor)
        if not sampling.greedy:
            ends = sampler.probabilities(written[n], ()).double().cumsum(0)
            point = torch.rand((), dtype=torch.float64, generator=random) * ends[-1]
            starts = torch.cat([torch.zeros(1, dtype=torch.float64), ends[:-1]])
            written[n] = -torch.maximum(starts - point, point - ends).clamp_min(0)
        seen.append(token)
        inside = constraint is not None and constraint.after(inside, token)
    return written
