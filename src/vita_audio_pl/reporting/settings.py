"""The schema of `conf/report.yaml`."""

from dataclasses import dataclass, field


@dataclass
class PathsConfig:
    """Folders, relative to the current directory unless absolute."""

    data: str = "data"
    runs: str = "runs"


@dataclass
class ReportConfig:
    """Everything that `python -m vita_audio_pl.report` can be told."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    run_name: str = "demo"  # the run in runs/<run_name>
    experiment: str | None = None  # instead of a run: the ablation in runs/<experiment>, all its arms
    runs: list[str] = field(default_factory=list)  # instead of a run: runs of several seeds, as one table
    wandb: str | None = None  # ENTITY/PROJECT to fetch the ablation's arms from, where they are not in runs/
    bench_name: str | None = None  # whose results; null = of the one bench that the run was measured on
    split: str = "test"  # of the main table; other splits follow it
    title: str | None = None  # of the page; null = the run's name, or the ablation's
    output: str | None = None  # folder; null = report/ in the run, or in the ablation
