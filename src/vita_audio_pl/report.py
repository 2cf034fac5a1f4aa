"""`python -m vita_audio_pl.report`: one HTML page, tables and figures of a run."""

import sys
from pathlib import Path

from rich.console import Console

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.reporting.dashboard import DashboardConfig, write_dashboard
from vita_audio_pl.reporting.page import last_stage
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.reporting.settings import ReportConfig
from vita_audio_pl.reporting.tables import comparison_table, controls_table, headline, main_table, terminal
from vita_audio_pl.reporting.write import write_report


def main(config: ReportConfig) -> None:
    folder = Path(config.paths.runs) / config.run_name
    run = RunFiles.read(folder, config.bench_name)
    output = Path(config.output) if config.output else folder / "report"
    report = write_report(run, output, config.title or f"Vita-Audio-PL: {config.run_name}", config.split)
    stage = last_stage(run, config.split)
    # A terminal's width where there is one; wide enough for the tables where the output goes to a file
    console = Console() if Console().is_terminal else Console(width=150)
    for title, table in (
        ("Held-out results (WER: lower is better; small: 95 % interval)", main_table(run, config.split)),
        (f"Against Vanilla after {stage}, in percentage points", comparison_table(run, config.split, stage)),
        ("How far the judge can be trusted", controls_table(run)),
    ):
        if table.rows:
            console.print(terminal(table, title))
    for sentence in headline(run, stage, config.split):
        console.print(sentence)
    console.print(f"page     {report.page.resolve()}")
    console.print(f"beside published tables  {report.standing.resolve()}")
    console.print(f"figures  {', '.join(path.name for path in report.figures)} in {output}")
    if report.sounds:
        console.print(f"sounds   {len(report.sounds)} files in {report.sounds[0].parent}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["dashboard"]:
        del sys.argv[1]
        run_entry_point(write_dashboard, "dashboard", DashboardConfig)
    else:
        run_entry_point(main, "report", ReportConfig)
