"""The schema of `conf/report.yaml`."""

from dataclasses import dataclass

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.fields import setting


@dataclass
class ReportConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.report`."""

    run_name: str = setting("demo", "a run in runs/, or a path to a run, a stage or its model", common=True)
    experiment: str | None = setting(
        None, "instead of a run: an ablation in runs/, with all its arms; null = a run", common=True
    )
    runs: list[str] = setting([], "instead of a run: runs with different seeds, in one table", common=True)
    wandb: str | None = setting(None, "ENTITY/PROJECT to fetch the ablation's arms from; null = from runs/")
    bench_name: str | None = setting(
        None, "bench whose results are shown; null = the only one the run was measured on", common=True
    )
    split: str = setting("test", "split of the main table; other splits follow it")
    title: str | None = setting(None, "title of the page; null = the name of the run or ablation")
    output: str | None = setting(None, "folder for the page; null = report/ in the run or ablation", common=True)
