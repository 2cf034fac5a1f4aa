"""Runs evaluations batch by batch on a pool of processes; finished batches are never repeated."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vita_audio_pl.child_processes import worker_processes
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.identity import Content, digest
from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.evaluation.records import (
    Answer,
    RecordFile,
    Transcript,
    TranscriptFile,
    answered_elsewhere,
    claim_folder,
)
from vita_audio_pl.evaluation.runs.jobs import Decoding, Evaluation
from vita_audio_pl.evaluation.runs.ranks import Share
from vita_audio_pl.storage.files import write_json

STEPS = ("generate", "transcribe")

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, and the utterances done and in total."""


Answered = tuple[list[Answer], dict[str, Any]]
"""Answers, and the choice of kernels that gave them, as `kernels=FILE` takes it."""


class Toolbox(Protocol):
    """Does the work of an evaluation, in every process of the pool."""

    def answer(self, model: Path, decoding: Decoding, batch_size: int, items: Sequence[Item]) -> Answered:
        """One answer for each item, in order, and the kernels that they were computed with."""
        ...

    def transcribe(
        self, model: Path, judge: str, answers: Sequence[Answer], voices: dict[str, Path]
    ) -> list[Transcript]:
        """The judge's transcript of each answer.

        `voices` has the voice prompt of each answer that has one, by id.
        """
        ...


@dataclass
class Records:
    """The existing records of one evaluation."""

    evaluation: Evaluation
    answers: RecordFile
    transcripts: RecordFile

    @classmethod
    def open(cls, evaluation: Evaluation, share: Share) -> "Records":
        """Claim the evaluation's folder, and copy this process's share of equal answers from sibling folders."""
        folder = evaluation.folder
        claim_folder(folder, evaluation.identity)
        records = cls(
            evaluation, RecordFile(folder, "answers", share.rank), RecordFile(folder, "transcripts", share.rank)
        )
        if records.missing(records.answers, share):
            for beside, facts in answered_elsewhere(folder, evaluation.identity):
                records._copy(beside, facts, share)
        return records

    def _copy(self, beside: Path, facts: dict[str, Any], share: Share) -> None:
        answers, transcripts = RecordFile(beside, "answers"), RecordFile(beside, "transcripts")
        ids = [
            item.id
            for item in self.missing(self.answers, share)
            if item.id in answers
            and answers[item.id].get("question") == self.content(item.id).question
            and not answers[item.id].get("failure")
        ]
        self.answers.append([answers[id] for id in ids])
        if self.evaluation.is_transcribed and facts.get("listening") == self.evaluation.identity.facts["listening"]:
            self.transcripts.append([transcripts[id] for id in ids if id in transcripts and id not in self.transcripts])

    def content(self, id: str) -> Content:
        return self.evaluation.identity.contents[id]

    def refresh(self) -> None:
        """Read records that other ranks added."""
        self.answers.refresh()
        self.transcripts.refresh()

    def answered(self) -> bool:
        return self.answers.done(item.id for item in self.evaluation.items)

    def complete(self) -> bool:
        """Whether every item has an answer and, if answers are transcribed, a transcript."""
        transcribed = not self.evaluation.is_transcribed or self.transcripts.done(
            item.id for item in self.evaluation.items
        )
        return transcribed and self.answered()

    def missing(self, file: RecordFile, share: Share) -> list[Item]:
        """Items of this process's share without a record in `file`."""
        return [item for batch in share.mine(self.evaluation.batches()) for item in batch if item.id not in file]

    def answer_of(self, id: str) -> Answer:
        return Answer.of(self.answers[id])

    def sound_of(self, answer: Answer) -> str:
        """Digest of everything that a `Transcript` depends on: judge, codec, codes, voice prompt."""
        identity = self.evaluation.identity
        return digest([identity.codec, dict(identity.listening), answer.codes, self.content(answer.id).voice])

    @cached_property
    def voices(self) -> dict[str, Path]:
        """Voice prompts by id."""
        return {item.id: item.voice for item in self.evaluation.items if item.voice is not None}

    def transcript_of(self, id: str) -> Transcript:
        return Transcript(**self.transcripts[id])


def run_evaluations(
    evaluations: Sequence[Evaluation],
    run: "Run",
    share: Share | None = None,
    progress: Progress = lambda step, done, total: None,
    steps: Sequence[str] = STEPS,
    transcripts: TranscriptFile | None = None,
) -> list[Records]:
    """Generate and transcribe what is not recorded yet; returns the records of all evaluations, in order.

    Args:
        run: pool of processes, from `worker_pool`.
        share: this process's share; by default everything.
        steps: some of `STEPS`; `transcribe` alone uses existing answers.
        transcripts: the judge's transcripts from other runs.

    Raises:
        UserError: only `transcribe` was requested, and answers are missing.
    """
    share = share or Share()
    records = [Records.open(evaluation, share) for evaluation in evaluations]
    if "generate" in steps:
        _generate(records, share, run, progress)
    for record in records:
        missing = len(record.missing(record.answers, share))
        if missing and "generate" not in steps:
            raise UserError(
                f"{missing} answers of {record.evaluation.name} are missing in {record.evaluation.folder}; "
                "generate them first (step=generate, with the same settings)"
            )
    if "transcribe" in steps:
        _transcribe(records, share, run, progress, transcripts)
    return records


MOST_REFILLS = 4
CALLS = 16


def _a_call(missing: Sequence[Item], evaluation: Evaluation) -> int:
    """Answers that one call makes: as one ends the next takes its place.

    Several batches for a large bench and one for a small one, so that processes share the work and a kill loses little.
    """
    batches = len(missing) // (CALLS * evaluation.batch_size)
    return evaluation.batch_size * min(MOST_REFILLS, max(1, batches))


def _generate(records: Sequence[Records], share: Share, run: "Run", progress: Progress) -> None:
    units = [
        (record, batch)
        for record in records
        for missing in [record.missing(record.answers, share)]
        for batch in _batches(missing, _a_call(missing, record.evaluation))
    ]
    done, total = 0, sum(len(batch) for _, batch in units)
    calls = []
    for record, batch in units:
        job = record.evaluation
        calls.append((job.model, job.decoding, job.batch_size, batch))
    results = run("answer", calls)
    for (record, batch), (answers, kernels) in zip(units, results, strict=True):
        record.answers.append([asdict(a) | {"question": record.content(a.id).question} for a in answers])
        # beside answers stands a file for each choice that gave some: with it another machine gives the same
        if not (choice := record.evaluation.folder / f"kernels-{digest(kernels)[:10]}.json").exists():
            write_json(choice, kernels)
        done += len(batch)
        progress("generate", done, total)


def _transcribe(
    records: Sequence[Records], share: Share, run: "Run", progress: Progress, elsewhere: TranscriptFile | None
) -> None:
    """Transcribe every answer; identical outputs, such as of two stages with the same backbone, are transcribed once."""
    known: dict[str, Transcript] = {} if elsewhere is None else elsewhere.read()
    units: list[tuple[Records, list[Answer]]] = []
    for record in (record for record in records if record.evaluation.is_transcribed):
        missing = record.missing(record.transcripts, share)
        for item in record.evaluation.items:
            if item.id in record.transcripts and item.id in record.answers:
                known.setdefault(record.sound_of(record.answer_of(item.id)), record.transcript_of(item.id))
        answers = [record.answer_of(item.id) for item in missing]
        units += [(record, batch) for batch in _batches(answers, record.evaluation.batch_size)]

    planned, calls = set(known), []
    for record, answers in units:
        fresh = []
        for answer in answers:
            sound = record.sound_of(answer)
            if answer.codes and sound not in planned:
                fresh.append(answer)
                planned.add(sound)
        voices = {answer.id: record.voices[answer.id] for answer in fresh if answer.id in record.voices}
        calls.append((record.evaluation.model, record.evaluation.judge, fresh, voices))

    done, total = 0, sum(len(answers) for _, answers in units)
    for (record, answers), (_, _, sent, _), transcripts in zip(units, calls, run("transcribe", calls), strict=True):
        news = {record.sound_of(a): h for a, h in zip(sent, transcripts, strict=True)}
        known |= news
        if elsewhere is not None and news:
            elsewhere.append(news)
        said = [replace(known[record.sound_of(a)], id=a.id) if a.codes else Transcript(a.id, "", 0.0) for a in answers]
        record.transcripts.append([asdict(one) for one in said])
        done += len(answers)
        progress("transcribe", done, total)


def _batches(of: Sequence[T], size: int) -> list[list[T]]:
    return [list(of[start : start + size]) for start in range(0, len(of), size)]


Run = Callable[[str, list[Any]], Iterator[Any]]
"""Calls a method of the toolbox once per tuple of arguments; results are in that order."""

_toolbox: Any  # set in every process of the pool


@contextmanager
def worker_pool(toolbox: Any, workers: int = 1) -> Iterator[Run]:
    """Calls methods of `toolbox` in this process if `workers` is 1, else in that many forked ones.

    Raises (when results are read):
        UserError: a process of the pool was killed; rerunning the same command resumes.
    """
    if workers <= 1:
        yield lambda method, calls: (getattr(toolbox, method)(*call) for call in calls)
        return
    # forked, so that each process has torch imported, and the toolbox without pickling
    with worker_processes(workers, "fork", _adopt, toolbox) as executor:

        def run(method: str, calls: list[Any]) -> Iterator[Any]:
            try:
                yield from executor.map(_call, [method] * len(calls), calls)
            except BrokenProcessPool:
                raise UserError(
                    "a process of the evaluation was killed, probably for lack of memory; give workers=1 or a smaller "
                    "batch_size, and rerunning the same command resumes"
                ) from None

        yield run


def _adopt(toolbox: Any) -> None:
    global _toolbox
    _toolbox = toolbox


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_toolbox, method)(*arguments)
