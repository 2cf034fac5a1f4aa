"""Runs evaluations batch by batch on a pool of processes; what is done stays done."""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.evaluation.jobs import Evaluation, players_of
from vita_audio_pl.evaluation.records import Answer, Heard, HeardFile, RecordFile, claim_folder

STEPS = ("generate", "listen")

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, what is done and what there is to do, in utterances."""


class Toolbox(Protocol):
    """What does the work of an evaluation; lives in every process of the pool."""

    def answer(self, evaluation: Evaluation, items: Sequence[Item]) -> list[Answer]:
        """One answer for each item, in order."""
        ...

    def listen(
        self, evaluation: Evaluation, answers: Sequence[Answer], keep: Sequence[str], voices: dict[str, Path]
    ) -> list[Heard]:
        """What the judge hears in each answer; answers whose id is in `keep` are also written as wav files.

        `voices` has the recording of the voice that an answer was to be spoken in, by id, where there is one.
        """
        ...


@dataclass(frozen=True)
class Share:
    """The part of the work that is this process's: batches `i` with `i % ranks == rank`."""

    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise UserError(f"shard {self.rank} of {self.ranks} does not exist; shards count from 0")

    @classmethod
    def of_environment(cls) -> "Share":
        """From torchrun's or SLURM's variables; the whole work where there are none."""
        for rank, ranks in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
            if rank in os.environ and ranks in os.environ:
                return cls(int(os.environ[rank]), int(os.environ[ranks]))
        return cls()

    def mine(self, batches: Sequence[T]) -> list[T]:
        return [batch for index, batch in enumerate(batches) if index % self.ranks == self.rank]


@dataclass
class Records:
    """The records of one evaluation, as far as they are there."""

    evaluation: Evaluation
    answers: RecordFile
    heard: RecordFile
    resumed: bool = False

    @classmethod
    def open(cls, evaluation: Evaluation, share: Share) -> "Records":
        resumed = claim_folder(evaluation.folder, evaluation.key())
        answers, heard = (RecordFile(evaluation.folder, stem, share.rank) for stem in ("answers", "heard"))
        return cls(evaluation, answers, heard, resumed=resumed and len(answers) > 0)

    def complete(self) -> bool:
        """True where every item has an answer and, if answers are listened to, was heard."""
        ids = [item.id for item in self.evaluation.items]
        return self.answers.done(ids) and (not self.evaluation.listens or self.heard.done(ids))

    def missing_answers(self, share: Share) -> int:
        """Items of this process's part without an answer."""
        batches = share.mine(self.evaluation.batches())
        return sum(not self.answers.done([item.id]) for batch in batches for item in batch)

    def answer_of(self, id: str) -> Answer:
        return Answer.of(self.answers[id])

    def sound_of(self, answer: Answer) -> str:
        """Hash of what an answer's `Heard` depends on: the judge, the codec, the codes, the voice that was asked for."""
        facts = [self.evaluation.judge, answer.codes, self.voices.get(answer.id, "")]
        return hashlib.sha256(self.evaluation.codec_header() + json.dumps(facts).encode()).hexdigest()

    @cached_property
    def voices(self) -> dict[str, str]:
        """The recordings of voices that answers were to be spoken in, by id."""
        return {item.id: str(item.voice) for item in self.evaluation.items if item.voice is not None}

    def heard_of(self, id: str) -> Heard:
        return Heard(**self.heard[id])


def run_evaluations(
    evaluations: Sequence[Evaluation],
    run: "Run",
    share: Share | None = None,
    progress: Progress = lambda step, done, total: None,
    steps: Sequence[str] = STEPS,
    heard: HeardFile | None = None,
) -> list[Records]:
    """Generate and listen to what is not recorded yet; the records of all evaluations, in order.

    Args:
        run: the processes that do it, from `worker_pool`.
        share: this process's part; by default the whole.
        steps: some of `STEPS`; `listen` alone takes answers that were generated before.
        heard: what the judge heard in other runs.

    Raises:
        UserError: `listen` alone was asked for, and answers are missing.
    """
    share = share or Share()
    records = [Records.open(evaluation, share) for evaluation in evaluations]
    if "generate" in steps:
        _generate(records, share, run, progress)
    for record in records:
        missing = record.missing_answers(share)
        if missing and "generate" not in steps:
            raise UserError(
                f"{missing} answers of {record.evaluation.name} are missing in {record.evaluation.folder}; "
                "generate them first (step=generate, with the same settings)"
            )
    if "listen" in steps:
        _listen(records, share, run, progress, heard)
    return records


def _generate(records: Sequence[Records], share: Share, run: "Run", progress: Progress) -> None:
    units = [
        (record, batch)
        for record in records
        for batch in share.mine(record.evaluation.batches())
        if not record.answers.done(item.id for item in batch)
    ]
    done, total = 0, sum(len(batch) for _, batch in units)
    results = run("answer", [(record.evaluation.without_items(), batch) for record, batch in units])
    for (record, batch), answers in zip(units, results, strict=True):
        record.answers.append(answers)
        done += len(batch)
        progress("generate", done, total)


def _listen(
    records: Sequence[Records], share: Share, run: "Run", progress: Progress, elsewhere: HeardFile | None
) -> None:
    """Listen to every answer; equal codes, say of a frozen backbone's two stages, are decoded and judged once."""
    known: dict[str, Heard] = {} if elsewhere is None else elsewhere.read()
    units: list[tuple[Records, list[Answer]]] = []
    for record in records:
        for batch in share.mine(record.evaluation.batches()) if record.evaluation.listens else []:
            answers = [record.answer_of(item.id) for item in batch]
            if not record.heard.done(answer.id for answer in answers):
                units.append((record, answers))
                continue
            for answer in answers:
                known[record.sound_of(answer)] = record.heard_of(answer.id)

    planned, calls = set(known), []
    for record, answers in units:
        keep = set(players_of(record.evaluation))
        fresh = {}
        for answer in answers:
            sound = record.sound_of(answer)
            if answer.codes and (sound not in planned or answer.id in keep):
                fresh[answer.id] = answer
                planned.add(sound)
        voices = {id: Path(record.voices[id]) for id in fresh if id in record.voices}
        calls.append((record.evaluation.without_items(), list(fresh.values()), sorted(keep & fresh.keys()), voices))

    done, total = 0, sum(len(answers) for _, answers in units)
    for (record, answers), (_, sent, _, _), heard in zip(units, calls, run("listen", calls), strict=True):
        news = {record.sound_of(a): h for a, h in zip(sent, heard, strict=True)}
        known |= news
        if elsewhere is not None:
            elsewhere.append(news)
        said = [replace(known[record.sound_of(a)], id=a.id) if a.codes else Heard(a.id, "", 0.0) for a in answers]
        record.heard.append(said)
        done += len(answers)
        progress("listen", done, total)


Run = Callable[[str, list[Any]], Iterator[list[Any]]]
"""Calls a method of the toolbox once for each tuple of arguments; results come in that order."""

_toolbox: Any  # set in every process of the pool


@contextmanager
def worker_pool(toolbox: Any, workers: int = 1) -> Iterator[Run]:
    """Calls methods of `toolbox` in this process if `workers` is 1, else in that many forked ones.

    Raises (when results are read):
        UserError: a process of the pool was killed; the same command goes on.
    """
    if workers <= 1:
        yield lambda method, calls: (getattr(toolbox, method)(*call) for call in calls)
        return
    # Forked, so that each process has torch imported and the toolbox without pickling it
    with ProcessPoolExecutor(workers, get_context("fork"), _adopt, (toolbox, os.getpid())) as executor:

        def run(method: str, calls: list[Any]) -> Iterator[list[Any]]:
            try:
                yield from executor.map(_call, [method] * len(calls), calls)
            except BrokenProcessPool:
                raise UserError(
                    "a process of the evaluation was killed, probably for lack of memory; give workers=1 or a smaller "
                    "batch_size, and the same command goes on where it stopped"
                ) from None
            except (Exception, KeyboardInterrupt) as error:
                # Ctrl-C leaves at once; else what is running ends first, or Python complains of its pipes when it exits
                executor.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
                raise

        yield run


def _adopt(toolbox: Any, parent: int) -> None:
    global _toolbox
    _toolbox = toolbox
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this process when its parent was killed; it would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _call(method: str, arguments: tuple[Any, ...]) -> list[Any]:
    result: list[Any] = getattr(_toolbox, method)(*arguments)
    return result
