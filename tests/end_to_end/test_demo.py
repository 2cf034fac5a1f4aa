"""The demo in its smoke form learns to hear, and training the heads helps."""

import csv
import json

from tests.end_to_end.conftest import RUN


def figure(place, stage: str, task: str, mode: str, name: str) -> float:
    """A figure of an evaluation, as a share."""
    (path,) = (place.folder / "runs" / RUN / "eval").glob(f"*/{stage}/*/{task}.{mode}.*/result.json")
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


def test_smoke_demo_lets_every_stage_answer_prompts_while_it_trains(smoke_demo):
    run = smoke_demo.folder / "runs" / RUN
    for stage, tasks in (("align", {"asr", "tts", "sqa", "text"}), ("mtp10", {"tts", "sqa"})):
        folders = sorted((run / stage / "samples").iterdir())
        assert len(folders) == 5
        rows = [json.loads(line) for line in (folders[-1] / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
        assert {row["task"] for row in rows} == tasks and len(rows) == 2 * len(tasks)
        spoken = [row for row in rows if row.get("audio")]
        assert all((folders[-1] / row["audio"]).is_file() and row["heard"] is not None for row in spoken)
    assert spoken, "no answer of the last stage's heads was spoken"
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "What it answered while it trained" in page


def test_a_prepared_world_is_only_read(place):
    """It may lie on storage that cannot be written: not even a lease is taken in it."""
    world = (place.folder / "data" / "spoken_world_smoke").resolve()
    before = {path: path.stat().st_mtime_ns for path in (world, *world.rglob("*"))}
    place.run("-m", "vita_audio_pl.prepare", "size=smoke")
    assert {path: path.stat().st_mtime_ns for path in (world, *world.rglob("*"))} == before
