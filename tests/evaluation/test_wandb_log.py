"""Evaluations in wandb: no figure hides another, documented globs find the files, and no outage undoes what was measured."""

import re

import pytest
import wandb
import yaml

from tests.patience import wait_until
from vita_audio_pl.assets import asset_dir
from vita_audio_pl.evaluation.runs.wandb_log import figures_by_key, log_to_wandb
from vita_audio_pl.evaluation.scores.scoring import METRICS


def suite_results() -> list[dict]:
    """A result for each task, mode and verification that an ablation's suite asks for, each figure another number."""
    suite = yaml.safe_load((asset_dir("conf") / "suite" / "ablation.yaml").read_text())
    results = []
    for entry in suite["evaluations"]:
        for mode in entry["modes"]:
            for task in entry["tasks"]:
                figures = {
                    metric.name: {"value": len(results) + n / 10, "low": 0.0, "high": 1.0, "utterances": 160}
                    for n, metric in enumerate(METRICS[task])
                }
                results.append({
                    "bench": "spoken_world", "split": "test", "stage": "sft", "task": task, "mode": mode,
                    "verify": entry.get("verify", "none"), "profile": "strict", "judge": "pocketsphinx", "limited_to": 160,
                    "backbone_passes": 12.0, "head_passes": 34.0, "tokens": 46.0, "silent": 0, "unfinished": 0, "failed": 0,
                    "metrics": figures,
                })  # fmt: skip
    return results


def test_every_figure_of_an_ablations_suite_has_a_key_of_its_own():
    results = suite_results()
    values = [figure["value"] for result in results for figure in result["metrics"].values()]
    figures = figures_by_key(results)
    assert len(set(values)) == len(values) == 26 and sorted(figures.values()) == sorted(values)
    assert {"spoken_world/test/tts/speech_wer/sft/own", "spoken_world/test/tts/speech_wer/sft/own+verify"} <= set(
        figures
    )


def test_a_documented_glob_finds_an_evaluations_offline_run(tmp_path):
    log_to_wandb(suite_results(), tmp_path / "runs/objective/distil-seed1/eval/spoken_world", "objective/distil-seed1",
                 "offline", "p")  # fmt: skip
    page = (asset_dir("conf").parent / "docs" / "ablations.md").read_text(encoding="utf-8")
    globs = re.search(r"^wandb sync ((?:.|\\\n)*?[^\\])$", page, re.MULTILINE)[1].replace("\\\n", " ").split()
    (run,) = (path for glob in globs for path in tmp_path.glob(glob))
    (written,) = run.glob("*.wandb")
    last = b"spoken_world/test/sqa/speech_accuracy/sft/turbo+verify"
    wait_until(
        lambda: last in written.read_bytes(), "the figures in the file"
    )  # wandb's writer is a process of its own


@pytest.mark.parametrize("outage", [wandb.errors.CommError("no route"), ConnectionError("no route"), Exception("gone")])
def test_an_evaluation_is_finished_though_wandb_cannot_be_reached(outage, tmp_path, monkeypatch, capsys):
    def init(**settings):
        raise outage

    monkeypatch.setattr(wandb, "init", init)
    log_to_wandb(suite_results(), tmp_path, "objective/distil-seed1", "online", "p")
    told = capsys.readouterr().err
    assert "wandb has no figures of objective/distil-seed1" in told and str(outage) in told and str(tmp_path) in told
