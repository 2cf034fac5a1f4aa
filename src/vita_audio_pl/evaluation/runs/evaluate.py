"""One call of the evaluation command: plan, run, score, compare, and control the judge."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vita_audio_pl.config.screen import messages
from vita_audio_pl.evaluation.judges.choice import judge_facts, judge_maker, own_judge
from vita_audio_pl.evaluation.records import TranscriptFile
from vita_audio_pl.evaluation.runs.controls import Recordings, measure_controls
from vita_audio_pl.evaluation.runs.jobs import Evaluation, audio_file, codec_folder
from vita_audio_pl.evaluation.runs.plan import plan_evaluations
from vita_audio_pl.evaluation.runs.ranks import Meeting, Share, sole_writer
from vita_audio_pl.evaluation.runs.results import keep_recordings, score_record, write_results
from vita_audio_pl.evaluation.runs.runner import Records, Run, run_evaluations, worker_pool
from vita_audio_pl.evaluation.runs.second_judge import listen_twice
from vita_audio_pl.evaluation.runs.toolbox import ModelToolbox
from vita_audio_pl.evaluation.runs.wandb_log import log_to_wandb
from vita_audio_pl.evaluation.scores.compare import compare_modes
from vita_audio_pl.evaluation.settings import EvaluateConfig
from vita_audio_pl.models.devices import require_device
from vita_audio_pl.storage.files import output_folder


def run_session(config: EvaluateConfig, console: Console | None = None) -> list[dict[str, Any]]:
    """Run the configured evaluations; returns their results under every requested profile.

    With several ranks each does its share and all end together; rank 0 writes and returns the results.

    Raises:
        UserError: settings, a model, a bench or a judge that cannot be used, or another rank that failed.
    """
    console = console or messages()
    share = Share.of_environment()
    if share.ranks > 1:
        console.print(
            f"rank {share.rank} of {share.ranks}: each answers its share, and rank 0 waits for all", soft_wrap=True
        )
    device = _device(config.device, share)
    evaluations = plan_evaluations(config, device, partial(console.print, soft_wrap=True))
    for folder in {evaluation.bench_folder for evaluation in evaluations}:
        output_folder(folder)
    for profile in _profiles(config):
        config.bench.scoring(profile)  # a normaliser that is missing is reported before the first answer
    toolbox = _toolbox(config, device)
    steps = {"all": ("generate", "transcribe"), "generate": ("generate",), "score": ("transcribe",)}[config.step]
    workers = config.workers or _processes(device)
    if "transcribe" in steps and (workers == 1 or device == "cpu"):  # a GPU cannot be used before processes are forked
        judges = {evaluation.judge for evaluation in evaluations if evaluation.is_transcribed}
        for judge in judges | (set() if share.rank else _second_judge(config, evaluations)):
            toolbox.judge(judge)  # a missing one is reported before the first answer
        if "generate" in steps:
            _read_codec(toolbox, config, evaluations)
    with (
        Meeting(evaluations[0].bench_folder, share) as meeting,
        sole_writer([evaluation.folder for evaluation in evaluations], share),
        worker_pool(toolbox, workers) as run,
    ):
        with _ShownProgress(console) as progress:
            transcripts = TranscriptFile(Path(config.transcripts)) if config.transcripts else None
            records = run_evaluations(evaluations, run, share, progress, steps, transcripts)

        def complete() -> bool:
            unfinished = [record for record in records if not _finished(record, config)]
            for record in unfinished:
                record.refresh()
            return all(_finished(record, config) for record in unfinished)

        if share.rank:
            meeting.wait_for_results(complete, "the results")
            return []
        meeting.wait_for_all(complete, "the answers")
        if config.step == "generate":
            console.print("every answer is recorded; step=score, with the same settings, transcribes and scores them")
            return []
        return _conclude(config, device, records, run)


def record_answers(draws: Sequence[EvaluateConfig], console: Console | None = None) -> list[Records]:
    """Generate and transcribe what is not recorded yet of one evaluation under each of some settings; no results are written.

    Args:
        draws: settings of evaluations that differ in `sampling` alone.

    Raises:
        UserError: as `run_session`.
    """
    config, device = draws[0], _device(draws[0].device, Share())
    evaluations = [evaluation for draw in draws for evaluation in plan_evaluations(draw, device)]
    toolbox, workers = _toolbox(config, device), config.workers or _processes(device)
    if workers == 1 or device == "cpu":
        toolbox.judge(evaluations[0].judge)  # one that is not there is refused before the first answer
        _read_codec(toolbox, config, evaluations)
    with worker_pool(toolbox, workers) as run, _ShownProgress(console or messages()) as progress:
        transcripts = TranscriptFile(Path(config.transcripts)) if config.transcripts else None
        return run_evaluations(evaluations, run, progress=progress, transcripts=transcripts)


def _read_codec(toolbox: ModelToolbox, config: EvaluateConfig, evaluations: Sequence[Evaluation]) -> None:
    """The one that is used first and kept until then: if it cannot be read, that is reported before the first answer."""
    spoken = [evaluation.model for evaluation in evaluations if evaluation.is_transcribed]
    if spoken:
        toolbox.codec(codec_folder(spoken[0], config.codec_folder))


def _toolbox(config: EvaluateConfig, device: str) -> ModelToolbox:
    return ModelToolbox(
        judge_maker(
            config.bench.grammar,
            config.judge_model,
            device,
            config.trust_file,
            own_judge(config.judge),
            config.bench.language,
        ),
        device,
        count_unreadable=config.missing_audio == "count",
        speaker_model=Path(config.speaker_model) if config.speaker_model else None,
        mos_model=Path(config.mos_model) if config.mos_model else None,
        trust_file=config.trust_file,
        graphs=config.graphs,
        kernels=config.kernels,
        quantize=config.quantize,
        codec_folder=config.codec_folder,
        encoder_folder=config.encoder_folder,
    )


def evaluation_keys(config: EvaluateConfig) -> list[str]:
    """What decides the results that `run_session` would give: the keys of their identities.

    Raises:
        UserError: as `plan_evaluations`.
    """
    evaluations = plan_evaluations(config, _device(config.device, Share()))
    return sorted(evaluation.identity.key for evaluation in evaluations)


def _finished(record: Records, config: EvaluateConfig) -> bool:
    return record.answered() if config.step == "generate" else record.complete()


def _conclude(config: EvaluateConfig, device: str, records: Sequence[Records], run: Run) -> list[dict[str, Any]]:
    """Everything that is computed from complete records, in one process."""
    _keep_audio(config, records, run)
    profiles = _profiles(config)
    about = {"normaliser": config.bench.normaliser, "unit": config.bench.unit}
    results = []
    for record in records:
        published = config.bench.published_for(record.evaluation.task, record.evaluation.split)
        comparable = {"published": [vars(p) for p in published], "incomparable": list(config.bench.incomparable)}
        for profile in profiles:
            results.append(write_results(record, config.bench.scoring(profile), about | comparable))
    evaluations = [record.evaluation for record in records]
    for folder, model in {evaluation.bench_folder: evaluation.model for evaluation in evaluations}.items():
        compare_modes(folder)
        if config.wandb != "off":
            group = config.run_name or model.resolve().parent.parent.name
            mode: Literal["offline", "online"] = "online" if config.wandb == "online" else "offline"
            log_to_wandb(results, folder, group, mode, config.wandb_project)
    _measure_judge(config, evaluations, run)
    _compare_judges(config, device, records, run)
    return results


def _profiles(config: EvaluateConfig) -> list[str]:
    return ["strict", "reference"] if config.profile == "both" else [config.profile]


def _keep_audio(config: EvaluateConfig, records: Sequence[Records], run: Run) -> None:
    """Store the audio of the first answers, and of as many of the worst, with their questions, for listening."""
    calls = []
    for record in records:
        evaluation = record.evaluation
        ids = [item.id for item in evaluation.items[: config.players]]
        ids += [row["id"] for row in score_record(record, config.bench.scoring("strict"))[: config.players]]
        keep_recordings(record, ids)
        if not evaluation.is_transcribed:
            continue
        answers = [record.answer_of(id) for id in dict.fromkeys(ids)]
        files = [(answer, evaluation.folder / audio_file(answer.id)) for answer in answers if answer.codes]
        wanted = [(answer, file) for answer, file in files if not file.is_file()]
        if wanted:
            calls.append((evaluation.model, wanted))
    for _ in run("speak", calls):
        pass


def _measure_judge(config: EvaluateConfig, evaluations: Sequence[Evaluation], run: Run) -> None:
    """Measure the judge on the bench's own recordings, once per output folder."""
    most = config.suite.controls if config.suite else config.controls
    if not most:
        return
    for folder in dict.fromkeys(evaluation.bench_folder for evaluation in evaluations):
        mine = [e for e in evaluations if e.bench_folder == folder]
        spoken = [e for e in mine if e.is_transcribed]
        if not spoken:
            continue
        items = {e.task: e.items for e in mine if e.split == config.split}
        sets = [
            Recordings.of_answers("the assistant's voice", items.get("tts", ()), most),
            Recordings.of_questions("the voices of the questions", items.get("asr", ()), most),
        ]
        players = [
            (f"{task}.{item.id}", item.spoken_reference)
            for task in ("tts", "sqa")
            for item in items.get(task, ())[: config.players]
            if item.spoken_reference is not None and item.spoken_reference.is_file()
        ]
        normalise = config.bench.scoring("strict").normalise
        sets = [recordings for recordings in sets if recordings.audios]
        if sets or players:
            last = spoken[-1]
            measure_controls(
                folder,
                codec_folder(last.model, config.codec_folder),
                last.judge,
                last.identity,
                sets,
                players,
                normalise,
                run,
            )


def _second_judge(config: EvaluateConfig, evaluations: Sequence[Evaluation]) -> set[str]:
    """The judge that is to hear answers again, if there is one."""
    suite = config.suite
    spoken = [e for e in evaluations if (e.task, e.split) == ("tts", config.split)]
    if suite is None or not suite.heard_twice or not spoken or not spoken[-1].is_transcribed:
        return set()
    return {suite.second_judge} - {"", spoken[-1].judge}


def _compare_judges(config: EvaluateConfig, device: str, records: Sequence[Records], run: Run) -> None:
    """Let the suite's second judge hear what the last stage says aloud, and recordings of the same texts."""
    suite = config.suite
    spoken = [r for r in records if (r.evaluation.task, r.evaluation.split) == ("tts", config.split)]
    if suite is None or not _second_judge(config, [record.evaluation for record in records]):
        return
    last = spoken[-1].evaluation
    of_last = [r for r in spoken if (r.evaluation.stage, r.evaluation.bench_folder) == (last.stage, last.bench_folder)]
    recordings = Recordings.of_answers("the assistant's voice", last.items, suite.heard_twice)
    if not recordings.audios:
        return
    files = {"grammar": config.bench.grammar, "model": config.judge_model, "language": config.bench.language}
    listen_twice(
        last.bench_folder,
        codec_folder(last.model, config.codec_folder),
        (last.judge, suite.second_judge),
        judge_facts(suite.second_judge, device, **files),
        recordings,
        of_last,
        config.bench.scoring("strict").normalise,
        run,
    )


def _device(name: str, share: Share) -> str:
    require_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and share.ranks > 1:
        return f"cuda:{share.local % torch.cuda.device_count()}"  # ranks of a node have a GPU each
    return name


def _processes(device: str) -> int:
    return 1 if device.startswith("cuda") else min(8, len(os.sched_getaffinity(0)))


class _ShownProgress:
    """A bar for each step on a terminal; nothing but the step's end elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=console)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "_ShownProgress":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=total)
        self._bars.update(self._tasks[step], completed=done)
