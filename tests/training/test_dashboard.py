"""The wandb workspace shows what training logs, and is written without a network."""

import csv
import json
import re

from vita_audio_pl.evaluation.runs.wandb_log import figures_by_key
from vita_audio_pl.evaluation.scores.scoring import METRICS
from vita_audio_pl.reporting.dashboard import ARMS, EVALUATION, SECTIONS, TABLES, DashboardConfig, write_dashboard
from vita_audio_pl.training.callbacks import sample_writer


def test_every_plot_has_a_metric_that_training_logs(trained, monkeypatch):
    class Deaf:
        def transcribe(self, waves, sample_rate):
            return [""] * len(waves)

    monkeypatch.setattr(sample_writer, "judge_maker", lambda *settings: lambda name: Deaf())
    columns = set()
    for stage in ("align", "mtp1"):
        settings = ("trainer.peak_tflops=10", "callbacks.samples.every_steps=6")
        with (trained(stage, *settings, prompts=True).root / "metrics.csv").open(newline="") as file:
            columns |= set(next(csv.reader(file)))
    for plots in SECTIONS.values():
        for metrics in plots.values():
            if isinstance(metrics, str):
                assert any(re.fullmatch(metrics, column) for column in columns), metrics
            else:
                assert set(metrics) <= columns


def test_every_plot_of_an_evaluation_finds_figures_and_no_figure_of_training():
    figure = {"value": 0.1}
    results = [
        {"bench": "spoken_world", "split": "test", "task": task, "stage": "sft", "mode": "own", "verify": "greedy",
         "profile": "strict", "metrics": dict.fromkeys((metric.name for metric in metrics), figure)} for task, metrics in METRICS.items()
    ]  # fmt: skip
    keys = figures_by_key(results)
    elsewhere = ["samples/tts/speech_wer", "samples/asr/wer", *(name for names in ARMS.values() for name in names)]
    shown = {key for key in keys for regex in EVALUATION.values() if re.search(regex, key)}
    assert shown == set(keys) and all(any(re.search(regex, key) for key in keys) for regex in EVALUATION.values())
    assert not any(re.search(regex, name) for regex in EVALUATION.values() for name in elsewhere)


def test_the_workspace_has_a_line_for_each_run_over_optimiser_steps(tmp_path):
    write_dashboard(DashboardConfig(output=str(tmp_path / "new" / "dashboard.json")))
    spec = json.loads((tmp_path / "new" / "dashboard.json").read_text())["spec"]
    sections = {section["name"]: section["panels"] for section in spec["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == [*SECTIONS, "Evaluation", "Arms of an ablation"]
    plots = SECTIONS | {"Evaluation": EVALUATION, "Arms of an ablation": ARMS}
    assert {name: len(panels) for name, panels in sections.items()} == {
        name: len(plots[name]) + len(TABLES.get(name, ())) for name in sections
    }
    curves = [panel["config"] for name in SECTIONS for panel in sections[name] if "Line Plot" in panel["viewType"]]
    assert curves and {curve["xAxis"] for curve in curves} == {"trainer/global_step"}
    assert all(table in json.dumps(sections[name]) for name, tables in TABLES.items() for table in tables)
    # panels draw the mean of what the table groups: the run's name among the keys leaves nothing to average
    assert [key["name"] for key in spec["section"]["runSets"][0]["grouping"]] == ["group", "jobType", "displayName"]
    assert spec["section"]["settings"]["maxRuns"] == 100
