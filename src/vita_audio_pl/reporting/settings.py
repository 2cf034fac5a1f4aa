"""The schema of `conf/report.yaml`."""

from dataclasses import dataclass

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.fields import setting


@dataclass
class ReportConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.report`."""

    run_name: str = setting(
        "demo", "the run in runs/<run_name>, or a path to it, to a stage or to its model", common=True
    )
    experiment: str | None = setting(
        None, "instead of a run: the ablation in runs/<experiment>, all its arms; null = a run", common=True
    )
    runs: list[str] = setting([], "instead of a run: runs of several seeds, as one table", common=True)
    wandb: str | None = setting(
        None, "ENTITY/PROJECT to fetch the ablation's arms from, where they are not in runs/; null = from runs/"
    )
    bench_name: str | None = setting(
        None, "whose results; null = of the one bench that the run was measured on", common=True
    )
    split: str = setting("test", "of the main table; other splits follow it")
    title: str | None = setting(None, "of the page; null = the run's name, or the ablation's")
    output: str | None = setting(None, "folder; null = report/ in the run, or in the ablation", common=True)
