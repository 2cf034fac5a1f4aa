"""One call of the evaluation command: plan, run, measure the judge, score, compare."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.compare import compare_results
from vita_audio_pl.evaluation.controls import Recordings, measure_controls
from vita_audio_pl.evaluation.jobs import Evaluation, audio_file
from vita_audio_pl.evaluation.judge_choice import judge_maker
from vita_audio_pl.evaluation.plan import output_folder, plan_evaluations
from vita_audio_pl.evaluation.records import HeardFile, write_atomically
from vita_audio_pl.evaluation.results import score_record, write_results
from vita_audio_pl.evaluation.runner import Records, Run, Share, run_evaluations, worker_pool
from vita_audio_pl.evaluation.settings import EvaluateConfig
from vita_audio_pl.evaluation.toolbox import ModelToolbox
from vita_audio_pl.evaluation.wandb_log import log_to_wandb


def run_session(config: EvaluateConfig, console: Console | None = None) -> list[dict[str, Any]]:
    """Do what the settings ask for; results of all evaluations that are complete, under every asked profile.

    With several ranks each does its share, and the rank that finds the records complete writes the results.

    Raises:
        UserError: settings, a model, a bench or a judge that cannot be used.
    """
    console = console or Console(stderr=True)
    evaluations = plan_evaluations(config)
    share = Share.of_environment()
    device = _device(config.device)
    toolbox = ModelToolbox(
        judge_maker(config.bench.grammar, config.judge_model, device, config.trust_file),
        device,
        count_unreadable=config.missing_audio == "count",
        speaker_model=Path(config.speaker_model) if config.speaker_model else None,
        mos_model=Path(config.mos_model) if config.mos_model else None,
        trust_file=config.trust_file,
        graphs=config.graphs,
    )
    steps = {"all": ("generate", "listen"), "generate": ("generate",), "score": ("listen",)}[config.step]
    workers = config.workers or _processes(device)
    if "listen" in steps and (workers == 1 or device == "cpu"):  # a GPU cannot be used before processes are forked
        for judge in {evaluation.judge for evaluation in evaluations if evaluation.listens}:
            toolbox.judge(judge)  # one that is not there is refused before the first answer
    with worker_pool(toolbox, workers) as run:
        with _ShownProgress(console) as progress:
            heard = HeardFile(Path(config.heard)) if config.heard else None
            records = run_evaluations(evaluations, run, share, progress, steps, heard)
        if config.step == "generate":
            return []
        complete = [record for record in records if record.complete()]
        if share.rank == 0:
            _controls(config, evaluations, run)
        _speak_worst(config, complete, run)
    profiles = ["strict", "reference"] if config.profile == "both" else [config.profile]
    about = {"normaliser": config.bench.normaliser, "unit": config.bench.unit}
    results = []
    for record in complete:
        published = config.bench.published_for(record.evaluation.task, record.evaluation.split)
        comparable = {"published": [vars(p) for p in published], "incomparable": list(config.bench.incomparable)}
        for profile in profiles:
            results.append(write_results(record, config.bench.scoring(profile), about | comparable))
    if not complete:
        return []
    folders = {output_folder(config, evaluation.model): evaluation.model for evaluation in evaluations}
    for folder, model in folders.items():
        compare_modes(folder)
        if config.wandb != "off":
            group = config.run_name or model.resolve().parent.parent.name
            mode: Literal["offline", "online"] = "online" if config.wandb == "online" else "offline"
            log_to_wandb(results, folder, group, mode, config.wandb_project)
    return results


def compare_modes(folder: Path) -> list[dict[str, Any]]:
    """Every mode against Vanilla, for each stage, split and task below a bench's folder; writes `comparisons.json`."""
    by_place: dict[tuple[str, ...], dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*/*/*/result.json")):
        stage, split = path.parts[-4], path.parts[-3]
        task, _, mode = path.parent.name.partition(".")
        by_place[stage, split, task][mode] = path.parent
    comparisons = [
        {"stage": stage, "split": split, "task": task, "mode": mode} | compare_results(modes["vanilla"], modes[mode])
        for (stage, split, task), modes in by_place.items()
        for mode in modes
        if "vanilla" in modes and mode != "vanilla"
    ]
    write_atomically(folder / "comparisons.json", json.dumps(comparisons, indent=2, ensure_ascii=False) + "\n")
    return comparisons


def _speak_worst(config: EvaluateConfig, complete: list[Records], run: Run) -> None:
    """Keep the audio of the worst answers too: they are what a person wants to hear."""
    calls = []
    for record in complete:
        evaluation = record.evaluation
        if evaluation.listens:
            worst = score_record(record, config.bench.scoring("strict"))[: config.players]
            answers = [record.answer_of(row["id"]) for row in worst]
            there = [a for a in answers if not a.codes or (evaluation.folder / audio_file(a.id)).is_file()]
            wanted = [answer for answer in answers if answer not in there]
            if wanted:
                calls.append((evaluation.without_items(), wanted))
    for _ in run("speak", calls):
        pass


def _controls(config: EvaluateConfig, evaluations: list[Evaluation], run: Run) -> None:
    """Measure the judge on the bench's own recordings, once for each output folder."""
    most = config.suite.controls if config.suite else config.controls
    if not most:
        return
    for folder in {output_folder(config, evaluation.model) for evaluation in evaluations}:
        mine = [e for e in evaluations if output_folder(config, e.model) == folder]
        spoken = [e for e in mine if e.listens]
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
            if item.spoken_reference is not None
        ]
        normalise = config.bench.scoring("strict").normalise
        sets = [recordings for recordings in sets if recordings.audios]
        measure_controls(folder, spoken[-1].model, spoken[-1].judge, sets, players, normalise, run)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={name} was asked for, but there is no GPU here; use device=cpu")
    return name


def _processes(device: str) -> int:
    return 1 if device.startswith("cuda") else min(8, len(os.sched_getaffinity(0)))


class _ShownProgress:
    """A bar for each step on a terminal; nothing but the step's end elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
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
