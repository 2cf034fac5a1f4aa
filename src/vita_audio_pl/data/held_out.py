"""Single held-out conversations, cut where their last answer begins: what a model is asked while it trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vita_audio_pl.data.prepared import BrokenSample, PreparedSource
from vita_audio_pl.data.samples import TokenizedSample
from vita_audio_pl.text import Turn

_TRIES = 200  # samples looked at for one that serves


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A held-out conversation.

    Attributes:
        id: `source/sample-id`.
        task: of its source.
        asked: the turns up to the answer.
        answer: what is expected; text-to-speech requests have their text in it.
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
    """The same conversations each time: `per_task` of each task, spread evenly over its sources and within them.

    Args:
        sources: held-out sources by number.
        read: sample of a source, by their numbers.
        tasks: of sources; one that no source has is left out.
        serves: whether a conversation can be used; the next one is looked at where it cannot.
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
