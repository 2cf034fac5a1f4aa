"""The demo in its smoke form learns to hear, and training the heads helps."""

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
    untrained = figure(smoke_demo, "mtp1", "tts", "boost", "speech_wer")
    trained = figure(smoke_demo, "mtp10", "tts", "boost", "speech_wer")
    assert trained < untrained


def test_smoke_demo_ends_with_a_page_figures_and_audio(smoke_demo):
    report = smoke_demo.folder / "runs" / RUN / "report"
    assert "<audio" in (report / "index.html").read_text(encoding="utf-8")
    assert list(report.rglob("*.png")) and list(report.rglob("*.wav"))
