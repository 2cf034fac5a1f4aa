"""The demo in its smoke form learns to hear, and training the heads helps."""

import csv
import json

import pytest

from tests.end_to_end.conftest import RUN

pytestmark = pytest.mark.timeout(1200)


def figure(place, stage: str, task: str, mode: str, name: str) -> float:
    """A figure of an evaluation, as a share."""
    (path,) = (place.folder / "runs" / RUN / "eval").glob(f"*/{stage}/*/{task}.{mode}/result.json")
    return json.loads(path.read_text(encoding="utf-8"))["metrics"][name]["value"]


def test_smoke_demo_hears_and_its_heads_learn_to_speak(smoke_demo):
    assert figure(smoke_demo, "sft", "asr", "vanilla", "wer") < 0.3
    with (smoke_demo.folder / "runs" / RUN / "mtp10" / "metrics.csv").open(newline="") as file:
        last_head = [
            float(row["train/accuracy_head_9"]) for row in csv.DictReader(file) if row["train/accuracy_head_9"]
        ]
    assert last_head[-1] > last_head[0] + 0.1
    assert figure(smoke_demo, "mtp10", "tts", "boost", "speech_wer") < 0.5


def test_smoke_demo_ends_with_a_page_figures_and_audio(smoke_demo):
    report = smoke_demo.folder / "runs" / RUN / "report"
    assert "<audio" in (report / "index.html").read_text(encoding="utf-8")
    assert list(report.rglob("*.png")) and list(report.rglob("*.wav"))
