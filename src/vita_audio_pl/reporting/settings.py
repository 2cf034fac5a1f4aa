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
    bench_name: str | None = None  # whose results; null = of the one bench that the run was measured on
    split: str = "test"  # of the main table; other splits follow it
    title: str | None = None  # of the page; null = the run's name
    output: str | None = None  # folder; null = runs/<run_name>/report
