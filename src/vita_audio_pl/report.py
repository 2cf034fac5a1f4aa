"""`python -m vita_audio_pl.report`: one HTML page, tables and figures of a run, or of an ablation."""

import sys
from pathlib import Path

from rich.console import Console

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.config.screen import screen
from vita_audio_pl.reporting.dashboard import DashboardConfig, write_dashboard
from vita_audio_pl.reporting.experiment.cost import cost_sentences, cost_table
from vita_audio_pl.reporting.experiment.files import ExperimentFiles
from vita_audio_pl.reporting.experiment.page import experiment_folder, write_experiment_report
from vita_audio_pl.reporting.experiment.summary import cautions
from vita_audio_pl.reporting.experiment.summary import headline as headline_of_arms
from vita_audio_pl.reporting.experiment.tables import results_over_seeds
from vita_audio_pl.reporting.experiment.wandb_arms import fetch_arms
from vita_audio_pl.reporting.run.page import last_stage
from vita_audio_pl.reporting.run.write import Report, write_report
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.reporting.settings import ReportConfig
from vita_audio_pl.reporting.tables import comparison_table, controls_table, headline, main_table, terminal
from vita_audio_pl.storage.model_folders import find_run
from vita_audio_pl.storage.owned import below


def report(config: ReportConfig) -> None:
    """Write the page of a run or of an ablation, and print its tables."""
    # the terminal's width if there is one; wide enough for the tables if the output goes to a file
    console = screen()
    written = _of_experiment(config, console) if config.experiment or config.runs else _of_run(config, console)
    console.print(f"page     {written.page.resolve()}")
    if written.standing is not None:
        console.print(f"beside published tables  {written.standing.resolve()}")
    console.print(f"figures  {', '.join(path.name for path in written.figures)} in {written.page.parent}")
    if written.sounds:
        console.print(f"sounds   {len(written.sounds)} files in {written.sounds[0].parent}")


def _of_experiment(config: ReportConfig, console: Console) -> Report:
    runs = Path(config.paths.runs)
    if config.runs:
        files = ExperimentFiles.of_runs([below(runs, name, "runs") for name in config.runs], config.bench_name)
        joined = "-and-".join(name.replace("/", "-") for name in config.runs)
        output = Path(config.output or runs / joined / "report")
    else:
        if config.wandb is not None:
            fetch_arms(config.wandb, str(config.experiment), runs)
        folder = experiment_folder(runs, str(config.experiment))
        files = ExperimentFiles.read(folder, config.bench_name)
        output = Path(config.output or folder / "report")
    console.print(files.question, style="bold")
    for title, table in (
        ("Held-out results (small: 95 % interval over seeds)", results_over_seeds(files, config.split)),
        ("Cost", cost_table(files)),
    ):
        if table.rows:
            console.print(terminal(table, title))
    for sentence in [*cautions(files), *headline_of_arms(files, config.split), *cost_sentences(files)]:
        console.print(sentence)
    return write_experiment_report(files, output, config.split, config.title or "")


def _of_run(config: ReportConfig, console: Console) -> Report:
    folder = find_run(config.run_name, config.paths.runs)
    run = RunFiles.read(folder, config.bench_name)
    output = Path(config.output) if config.output else folder / "report"
    written = write_report(run, output, config.title or f"Vita-Audio-PL: {folder.name}", config.split)
    stage = last_stage(run, config.split)
    for title, table in (
        ("Held-out results (WER: lower is better; small: 95 % interval)", main_table(run, config.split)),
        (f"Against Vanilla after {stage}, in percentage points", comparison_table(run, config.split, stage)),
        ("How far the judge can be trusted", controls_table(run)),
    ):
        if table.rows:
            console.print(terminal(table, title))
    for sentence in [*headline(run, stage, config.split), *run.notes]:
        console.print(sentence)
    return written


def main() -> None:
    if sys.argv[1:2] == ["dashboard"]:
        del sys.argv[1]
        run_entry_point(write_dashboard, "dashboard", DashboardConfig)
        return
    run_entry_point(report, "report", ReportConfig, own=("experiment",))


if __name__ == "__main__":
    main()
