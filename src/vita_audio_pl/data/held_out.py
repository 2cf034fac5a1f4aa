"""Held-out prompts: conversations cut before their last answer, which the model answers during training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vita_audio_pl.data.prepared import BrokenSample, PreparedSource
from vita_audio_pl.data.samples import TokenizedSample
from vita_audio_pl.text import Turn

_TRIES = 200  # samples to try before giving up on finding a usable one


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A held-out conversation, cut before its last answer.

    Attributes:
        id: `source/sample-id`.
        task: task of its source.
        asked: turns before the answer.
        answer: reference answer; for text-to-speech it includes the text.
    """

    id: str
    task: str
    asked: tuple[Turn, ...]
    answer: Turn


def choose_held_out(
    sources: Mapping[int, PreparedSource],
    read: Callable[[int, int], TokenizedSample],
    tasks: Sequence[str],
    per_task: int,
    serves: Callable[[HeldOut], bool],
) -> list[HeldOut]:
    """A deterministic choice of `per_task` conversations per task, spread evenly over its sources and within them.

    Args:
        sources: held-out sources, in order.
        read: reads a sample, given source number and sample number.
        tasks: tasks to choose for; those without a source are skipped.
        serves: whether a conversation can be used; if not, the next one is tried.
    """
    chosen: list[HeldOut] = []
    for task in tasks:
        numbers = [number for number, source in sources.items() if source.manifest.task == task]
        for nth in range(per_task if numbers else 0):
            number = numbers[nth % len(numbers)]
            rounds = -(-per_task // len(numbers))
            first = nth // len(numbers) * len(sources[number]) // rounds
            found = _first_that_serves(number, sources[number], task, first, read, serves)
            if found is not None and all(found.id != other.id for other in chosen):
                chosen.append(found)
    return chosen


def _first_that_serves(
    number: int,
    source: PreparedSource,
    task: str,
    first: int,
    read: Callable[[int, int], TokenizedSample],
    serves: Callable[[HeldOut], bool],
) -> HeldOut | None:
    for sample in range(first, min(len(source), first + _TRIES)):
        if sample in source.quarantined:
            continue
        try:
            turns = read(number, sample)
        except BrokenSample:
            continue
        answers = [at for at, turn in enumerate(turns.turns) if turn.role == "assistant"]
        if answers and answers[-1] > 0:
            held = HeldOut(f"{source.name}/{turns.id}", task, turns.turns[: answers[-1]], turns.turns[answers[-1]])
            if serves(held):
                return held
    return None
