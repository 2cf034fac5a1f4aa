"""What preparing tells while it works and when it is done: status, parts that are tried again, array jobs, data cards."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from toy_corpus import toy_job, toy_tokenizer, write_corpus

from vita_audio_pl.data.card import MixtureCard, card_of
from vita_audio_pl.data.executors import LocalExecutor, PartsFailed, Report
from vita_audio_pl.data.mixture import Mixture, Share
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.readers.tables import TableReader
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.data.tools.status import SourceStatus, status_of, status_table
from vita_audio_pl.storage.places import place


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_corpus(folder, "asr", 180)
    return folder


def failing(job: TokenizeJob, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the second part fail so many times."""
    run, bad = TokenizeJob.run, job.reader.parts()[1].name
    left = [times]

    def unsteady(self, part, progress=lambda done: None):  # noqa: ANN001, ANN202
        if part.name == bad and left[0]:
            left[0] -= 1
            raise RuntimeError("the decoder lost its way")
        run(self, part, progress)

    monkeypatch.setattr(TokenizeJob, "run", unsteady)


@pytest.mark.parametrize("url", ["", "memory://status"])
def test_a_part_that_fails_is_tried_again_and_then_told(
    raw: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = toy_job(raw, place(url) if url else tmp_path, "asr", toy_tokenizer())  # type: ignore[arg-type]
    assert status_of(job.out) == SourceStatus("asr") and status_of(job.out).summary == "not begun"
    failing(job, 2, monkeypatch)
    with pytest.raises(PartsFailed, match="1 of 4 parts of 'asr' failed after 2 tries each, .*lost its way"):
        prepare_source(job, LocalExecutor(tries=2))
    status = status_of(job.out)
    assert (status.parts, status.done, status.failed, status.left, status.summary) == (4, 3, 1, 0, "stopped")
    assert "failed 2 times" in status.failures[0] and "lost its way" in status.failures[0]
    monkeypatch.undo()
    failing(job, 2, monkeypatch)
    manifest = prepare_source(job, LocalExecutor(tries=3))
    status = status_of(job.out)
    assert manifest is not None and status.ready and (status.done, status.failed, status.failures) == (4, 0, ())
    assert (status.seconds, status.samples) == (manifest.seconds, manifest.samples) and not status.jobs


def test_status_shows_the_jobs_at_work_and_the_last_of_an_array_tells_of_all(raw: Path, tmp_path: Path) -> None:
    job = toy_job(raw, tmp_path, "asr", toy_tokenizer())
    seen: list[SourceStatus] = []

    @contextmanager
    def watch(source: str, parts: int) -> Iterator[Report]:
        yield lambda part, progress, finished: seen.append(status_of(job.out)) if finished else None

    told: list[str] = []
    assert prepare_source(job, LocalExecutor(1, 0, 2), watch, tell=told.append) is None and not told
    first, second = seen
    assert (first.parts, first.done, first.summary) == (4, 1, "running") and second.done == 2
    assert first.jobs[0][0].holder.is_here and first.jobs[0][0].kind == "prepare.0-of-2"
    assert second.to_go is not None and second.hours_an_hour > 0 and second.running + second.left == 2
    assert (status_of(job.out).done, status_of(job.out).left, status_of(job.out).summary) == (2, 2, "stopped")
    assert prepare_source(job, LocalExecutor(1, 1, 2), tell=told.append) is not None
    assert [line.split(" on ")[0] for line in told] == ["prepare.0-of-2", "prepare.1-of-2"]
    assert all("2 of 2 parts in " in line and "h an hour, 0 left out" in line for line in told)
    console = Console(width=200, record=True)
    mixture = Mixture("mine", (Share("asr", hours=3.0), Share("tts", 2.0)))
    console.print(status_table([status_of(job.out), SourceStatus("tts")], mixture))
    text = console.export_text()
    assert 0 < first.samples < second.samples < status_of(job.out).samples
    few = SourceStatus("asr", samples=400, seconds=8 * 3600)
    console.print(status_table([few], Mixture("mine", (Share("asr", 2.0, num=100),))))
    assert "4.00" in console.export_text()
    assert "1 of 2 ready" in text and "not begun" in text and text.count("3.00") == 2 and "one of 'mine' takes" in text


def test_cards_say_what_was_prepared_and_what_was_not(tmp_path: Path) -> None:
    rows = [
        {"id": f"r{n}", "audio": f"audio/asr{n:05d}.wav", "text": "the cow" if n else "", "speaker": f"s{n % 3}"}
        for n in range(8)
    ]
    write_corpus(tmp_path, "asr", 8)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"id": "id", "audio": "audio", "text": "text", "speaker": "speaker"}
    job = replace(
        toy_job(tmp_path, tmp_path / "shards", "asr", toy_tokenizer()),
        reader=TableReader(tmp_path, columns, task="asr", files=("rows.jsonl",)),
        about={"licence": "CC0 | free", "languages": ["en"], "description": "tones", "home": "here"},
    )
    manifest = prepare_source(job)
    assert manifest is not None
    card = json.loads((job.out / "card.json").read_text())
    assert (card["samples"], card["speakers"], card["languages"], card["licence"]) == (7, 3, ["en"], "CC0 | free")
    assert card["left_out"] == {"no transcript": 1} and card["overlap"] is None
    assert card["hours"] == pytest.approx(manifest.seconds / 3600, abs=1e-4)
    page = (job.out / "card.md").read_text()
    assert "| licence | CC0 \\| free |" in page and "no transcript: 1" in page and "not looked for" in page
    mixture = Mixture("mine", (Share("asr", 0.5), Share("tts")))
    both = MixtureCard.of(mixture, [card_of(manifest, {"test": {"the same audio": 2}})])
    assert both.to_json()["samples"] == 7 and both.missing == ("tts",)
    assert "test: 2 (the same audio)" in both.to_markdown() and "Not prepared: tts." in both.to_markdown()
