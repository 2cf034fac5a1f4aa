"""The wandb workspace shows what training logs, and is written without a network."""

import csv
import json
import re

from vita_audio_pl.reporting.dashboard import SECTIONS, TABLES, DashboardConfig, write_dashboard
from vita_audio_pl.training import sample_writer


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


def test_the_workspace_is_written_as_json(tmp_path):
    write_dashboard(DashboardConfig(output=str(tmp_path / "new" / "dashboard.json")))
    workspace = json.loads((tmp_path / "new" / "dashboard.json").read_text())
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == list(SECTIONS)
    assert [len(section["panels"]) for section in sections] == [
        len(plots) + len(TABLES.get(name, ())) for name, plots in SECTIONS.items()
    ]
    assert "samples/answers" in json.dumps(sections)
    assert "group" in json.dumps(workspace["spec"]["section"]["runSets"][0]["grouping"])
