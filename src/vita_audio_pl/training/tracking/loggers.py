"""The loggers of a run: metrics.csv always, TensorBoard and wandb by choice."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch.loggers import Logger

from vita_audio_pl.storage.secrets import command_line_without_credentials, without_credentials
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.tracking.lineage import changed_settings, group_of, kept_id
from vita_audio_pl.training.tracking.metrics_csv import MetricsCsv


def build_loggers(config: TrainConfig, folder: Path, settings: dict[str, Any]) -> list[Logger]:
    """Loggers for the stage's `folder`; a resumed run continues the same wandb run.

    Args:
        settings: the whole configuration as plain values, logged as hyperparameters.

    `logger.extra` is built last; a class that takes `save_dir` gets the stage's folder.
    """
    loggers: list[Logger] = [MetricsCsv(folder)]
    if config.logger.tensorboard:
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    mode = wandb_mode(config.logger.wandb)
    if mode != "off":
        from lightning.pytorch.loggers import WandbLogger

        # one run per stage, grouped by the chain or the ablation; a resumed stage continues its curves
        os.environ.setdefault("WANDB_SILENT", "true")
        wandb_logger = WandbLogger(
            name=f"{config.run_name}/{config.stage.name}",
            project=config.logger.wandb_project,
            entity=config.logger.wandb_entity,
            id=kept_id(folder, f"{config.run_name}-{config.stage.name}"),
            group=config.logger.wandb_group or group_of(config.run_name),
            job_type=config.stage.name,
            save_dir=folder,
            offline=mode == "offline",
            mode=mode,  # passed explicitly: wandb reads Lightning's environment variable only once per process
            tags=[
                tag
                for tag in (config.stage.name, config.variant.name, config.scale.name, config.experiment.name)
                if tag
            ]
            + config.logger.wandb_tags,
            notes=without_credentials(config.experiment.question) or None,
        )
        wandb_logger._wandb_init.pop("anonymous", None)  # Lightning passes it, and wandb warns that it has no effect
        with command_line_without_credentials():  # this starts wandb
            wandb_logger.log_hyperparams(settings | {"changed": changed_settings(config)})
        loggers.append(wandb_logger)
    return [*loggers, *(logger.build(save_dir=folder) for logger in config.logger.extra.values())]


@contextmanager
def wandb_run_ends(loggers: Sequence[Logger]) -> Iterator[None]:
    """Ends the stage's wandb run after the block: the next stage of this process starts its own."""
    from lightning.pytorch.loggers import WandbLogger

    try:
        yield
    finally:
        if any(isinstance(logger, WandbLogger) for logger in loggers):
            import wandb

            wandb.finish(exit_code=0 if sys.exc_info()[0] is None else 1)


def log_samples(
    loggers: Sequence[Logger], rows: Sequence[dict[str, Any]], figures: dict[str, float], folder: Path, step: int
) -> None:
    """Log the metrics of samples to every logger, and the samples to wandb as the table `samples/answers`.

    Args:
        rows: lines of `samples.jsonl`, whose audio paths are relative to `folder`.
    """
    from lightning.pytorch.loggers import WandbLogger

    for logger in loggers:
        logger.log_metrics(figures, step)
        if isinstance(logger, WandbLogger):
            import wandb

            columns = ["step", "task", "id", "asked", "reference", "text", "transcript", "wer", "seconds"]
            table = wandb.Table([*columns, "audio"])
            for row in rows:
                sound = wandb.Audio(str(folder / row["audio"])) if "audio" in row else None
                table.add_data(step, *(row.get(name) for name in columns[1:]), sound)
            logger.experiment.log({"samples/answers": table, "trainer/global_step": step})


def wandb_mode(wanted: str) -> Literal["online", "offline", "off"]:
    """`online`, `offline` or `off`; `auto` depends on whether there is a key."""
    if wanted != "auto":
        return cast(Literal["online", "offline", "off"], wanted)
    if os.environ.get("WANDB_MODE") == "disabled":
        return "off"
    if os.environ.get("WANDB_MODE") == "offline":
        return "offline"
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return "online" if netrc.is_file() and "wandb" in netrc.read_text(errors="ignore") else "offline"
