"""From settings to a list of evaluations."""

import json
from pathlib import Path

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.jobs import Decoding, Evaluation, stage_of
from vita_audio_pl.evaluation.settings import OWN, EvaluateConfig, SuiteEntry
from vita_audio_pl.inference.loading import model_folder
from vita_audio_pl.interleave import NAMED_PATTERNS, DecodePattern


def plan_evaluations(config: EvaluateConfig) -> list[Evaluation]:
    """The evaluations that the settings ask for, models one after another.

    Raises:
        UserError: a model folder is missing, or the bench has no such task or split.
    """
    if config.suite is None:
        tasks = list(config.bench.tasks) if config.task == "all" else [config.task]
        modes = list(NAMED_PATTERNS) if config.mode == "all" else [config.mode]
        model = model_folder(config.model or "")
        entries = [(model, SuiteEntry(stage_of(model), modes, tasks, config.split, config.limit))]
    else:
        run = Path(config.paths.runs) / str(config.run_name)
        entries = [(model_folder(run / (entry.stage or last_stage(run))), entry) for entry in config.suite.evaluations]
    evaluations = []
    for model, entry in entries:
        stage = entry.stage or stage_of(model)
        for task in entry.tasks:
            split = entry.split or config.split
            limit = entry.limit or config.limit
            items = config.bench.items(task, split, limit, config.missing_audio)
            for mode in entry.modes:
                decoding = Decoding(
                    mode,
                    own_pattern(model) if mode == OWN else NAMED_PATTERNS[mode],
                    entry.verify or config.verify,
                    config.constrain_audio,
                    config.bench.token_limit(task),
                    config.batch_size,
                )
                evaluations.append(
                    Evaluation(
                        model=model,
                        stage=stage,
                        bench=config.bench.name,
                        split=split,
                        task=task,
                        items=items,
                        decoding=decoding,
                        judge=config.judge or config.bench.judge,
                        folder=output_folder(config, model) / stage / split / f"{task}.{decoding.label}",
                        players=config.players,
                        limited=len(items) == limit,
                    )
                )
    return evaluations


def last_stage(run: Path) -> str:
    """The finished stage of a run that none of its other stages started from.

    Raises:
        UserError: no stage is finished, or the run has several ends.
    """
    manifests = {
        path.parents[1].name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(run.glob("*/model/manifest.json"))
    }
    starts = {manifest.get("parent_weights") for manifest in manifests.values()}
    ends = [stage for stage, manifest in manifests.items() if manifest.get("weights") not in starts]
    if len(ends) != 1:
        raise UserError(
            f"{run} has {'no finished stage' if not ends else 'several last stages, ' + ', '.join(ends)}; name the stage "
            "in the suite's entries"
        )
    return ends[0]


def own_pattern(model: Path) -> tuple[int, ...]:
    """The decoding pattern that a model folder names.

    Raises:
        UserError: it names none.
    """
    path = model / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not settings.get("mtp_inference_mode"):
        raise UserError(f"mode=own takes the pattern that the model names, and {path} names none; choose another mode")
    return DecodePattern.of(settings["mtp_inference_mode"]).runs


def output_folder(config: EvaluateConfig, model: Path) -> Path:
    """Where a bench's results go: `runs/<run>/eval/<bench>` beside the stage that `runs/<run>/<stage>/model` is of."""
    if config.output is not None:
        return Path(config.output)
    run = model.parent.parent if model.name == "model" else model
    return run / "eval" / config.bench.name
