"""From settings to a list of evaluations."""

from pathlib import Path

from vita_audio_pl.evaluation.jobs import Decoding, Evaluation, stage_of
from vita_audio_pl.evaluation.settings import EvaluateConfig, SuiteEntry
from vita_audio_pl.inference.loading import model_folder
from vita_audio_pl.interleave import NAMED_PATTERNS


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
        entries = [(model_folder(run / entry.stage), entry) for entry in config.suite.evaluations]
    evaluations = []
    for model, entry in entries:
        for task in entry.tasks:
            split = entry.split or config.split
            limit = entry.limit or config.limit
            items = config.bench.items(task, split, limit, config.missing_audio)
            for mode in entry.modes:
                decoding = Decoding(
                    mode,
                    NAMED_PATTERNS[mode],
                    config.verify,
                    config.constrain_audio,
                    config.bench.token_limit(task),
                    config.batch_size,
                )
                evaluations.append(
                    Evaluation(
                        model=model,
                        stage=entry.stage,
                        bench=config.bench.name,
                        split=split,
                        task=task,
                        items=items,
                        decoding=decoding,
                        judge=config.judge or config.bench.judge,
                        folder=output_folder(config, model) / entry.stage / split / f"{task}.{decoding.label}",
                        players=config.players,
                        limited=len(items) == limit,
                    )
                )
    return evaluations


def output_folder(config: EvaluateConfig, model: Path) -> Path:
    """Where a bench's results go: `runs/<run>/eval/<bench>` beside the stage that `runs/<run>/<stage>/model` is of."""
    if config.output is not None:
        return Path(config.output)
    run = model.parent.parent if model.name == "model" else model
    return run / "eval" / config.bench.name
