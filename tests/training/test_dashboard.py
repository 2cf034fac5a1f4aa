"""The wandb workspace shows what training logs, and is written without a network."""

import csv
import json
import re

from vita_audio_pl.reporting.dashboard import SECTIONS, DashboardConfig, write_dashboard


def test_every_plot_has_a_metric_that_training_logs(trained):
    trained("align", "trainer.peak_tflops=10")
    columns = set()
    for stage in ("align", "mtp1"):
        with (trained(stage, "trainer.peak_tflops=10").root / "metrics.csv").open(newline="") as file:
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
    assert [len(section["panels"]) for section in sections] == [len(plots) for plots in SECTIONS.values()]
    assert "group" in json.dumps(workspace["spec"]["section"]["runSets"][0]["grouping"])
