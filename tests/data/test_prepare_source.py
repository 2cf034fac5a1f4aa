import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from toy_codec import RATE, LoudnessCodec
from toy_corpus import toy_job, toy_tokenizer, write_corpus

from vita_audio_pl.data.executors import LocalExecutor, RayExecutor
from vita_audio_pl.data.outputs import Outputs
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.readers.jsonl import JsonlReader
from vita_audio_pl.data.readers.tables import TableReader
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import load_audio
from vita_audio_pl.storage import files
from vita_audio_pl.storage.lease import hold
from vita_audio_pl.text import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return toy_tokenizer()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_corpus(folder, "asr", 260)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file that readers of a source look at."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_doing_it_again_does_nothing(raw: Path, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    job = toy_job(raw, tmp_path, "asr", tokenizer)
    manifest = prepare_source(job)
    assert manifest is not None and manifest.samples == 260 and len(manifest.shards) == 6
    times = {path: path.stat().st_mtime_ns for path in (job.out, *job.out.iterdir())}
    assert prepare_source(job) == manifest
    assert {path: path.stat().st_mtime_ns for path in (job.out, *job.out.iterdir())} == times  # no lease either


def test_a_changed_line_redoes_one_part_and_the_old_stays_until_it_is_pruned(
    raw: Path, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    job = toy_job(tmp_path / "raw", tmp_path / "shards", "asr", tokenizer)
    first = prepare_source(job)
    path = tmp_path / "raw/asr.jsonl"
    lines = path.read_text().splitlines()
    lines[60] = lines[0].replace("asr-0", "asr-new")
    path.write_text("\n".join(lines) + "\n")
    precious = [job.out / name for name in ("notes.tar", "a" * 21 + ".tar", ".old.partial", "mine/index.bin")]
    for file in precious:
        file.parent.mkdir(exist_ok=True)
        file.write_text("precious")
    told: list[str] = []
    second = prepare_source(job, tell=told.append)
    assert first is not None and second is not None
    changed = [one.name != other.name for one, other in zip(first.shards, second.shards, strict=True)]
    assert changed == [False, True, False, False, False, False]
    old = first.shards[1].name
    assert len(told) == 1 and f"{job.out}: 3 files, such as {old.removesuffix('.tar')}.done.json" in told[0]
    assert "prune=true removes them" in told[0] and (job.out / old).is_file()
    assert prepare_source(job, prune=True, tell=told.append) == second
    assert not list(job.out.glob(f"{old.removesuffix('.tar')}.*")) and "were removed" in told[1]
    assert {p.name for p in job.out.glob("*.tar")} - {p.name for p in precious} == {s.name for s in second.shards}
    assert all(file.read_text() == "precious" for file in precious)
    assert PreparedSource(job.out).read(60).id == "asr-new"


def test_trying_some_parts_takes_nothing_from_a_source_that_has_more(
    raw: Path, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    job = toy_job(raw, tmp_path, "asr", tokenizer)
    tried = prepare_source(job, most_parts=1)
    assert tried is not None and len(tried.shards) == 1
    assert len((prepare_source(job, most_parts=2) or tried).shards) == 2
    whole = prepare_source(job)
    before = contents(job.out)
    assert prepare_source(job, most_parts=1) == whole and contents(job.out) == before
    other = replace(job, codec={**job.codec, "fingerprint": "loudness-2"})
    with pytest.raises(UserError, match="parts=1 would put a trial in its place: give another shards=DIR"):
        prepare_source(other, most_parts=1)
    assert contents(job.out) == before


def test_a_folder_of_others_is_not_prepared_into(raw: Path, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    job = toy_job(raw, tmp_path, "asr", tokenizer)
    job.out.mkdir()
    (job.out / "manifest.json").write_text("precious")
    with pytest.raises(
        UserError, match=f"{job.out} is not a prepared source .*nothing there is touched; give an empty"
    ):
        prepare_source(job)
    assert [path.name for path in job.out.iterdir()] == ["manifest.json"]


def test_a_file_that_was_copied_is_the_same_and_this_is_told(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    (tmp_path / "raw").mkdir()
    rows = [json.dumps({"id": str(n), "q": "red cow", "a": f"blue duck {n}"}) for n in range(6)]
    (tmp_path / "raw/chat.jsonl").write_text("\n".join(rows))

    def job(root: str) -> TokenizeJob:
        columns = {"id": "id", "user": "q", "assistant": "a"}
        reader = TableReader(tmp_path / root, columns, files=("*.jsonl",), rows_per_part=3)
        plain = toy_job(tmp_path, tmp_path / "shards", "text", tokenizer)
        return replace(plain, reader=reader, make_codec=None, codec={})

    told: list[str] = []
    first = prepare_source(job("raw"), tell=told.append)
    shutil.copytree(tmp_path / "raw", tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy/chat.jsonl", ns=(1, 1))
    before = contents(job("copy").out)
    assert not told and prepare_source(job("copy"), tell=told.append) == first and contents(job("copy").out) == before
    assert len(told) == 1 and "the files of 2 parts" in told[0] and "taken for the same" in told[0]
    path = tmp_path / "copy/chat.jsonl"
    path.write_text(path.read_text().replace("blue duck 4", "blue frog 4"))
    second = prepare_source(job("copy"), tell=told.append)
    assert first is not None and second is not None and first.shards[1] != second.shards[1]


@pytest.mark.parametrize("damage", ["shard deleted", "shard cut", "index deleted", "index of others", "manifest cut"])
def test_what_is_lost_afterwards_is_made_anew_by_the_same_command(
    raw: Path, tmp_path: Path, tokenizer: TextTokenizer, damage: str
) -> None:
    job = toy_job(raw, tmp_path, "asr", tokenizer)
    before = prepare_source(job)
    assert before is not None
    whole, shard = contents(job.out), job.out / before.shards[2].name
    match damage:
        case "shard deleted":
            shard.unlink()
        case "shard cut":
            shard.write_bytes(shard.read_bytes()[:-512])
        case "index deleted":
            (job.out / "index.bin").unlink()
        case "index of others":
            shutil.copy(shard.with_suffix(".index"), job.out / "index.bin")
        case "manifest cut":
            (job.out / "manifest.json").write_text('{"format"')
    times = {path.name: path.stat().st_mtime_ns for path in job.out.glob("*.tar") if path != shard}
    assert prepare_source(job) == before and contents(job.out) == whole
    assert {name: (job.out / name).stat().st_mtime_ns for name in times} == times


def test_another_codec_or_tokenizer_makes_other_shards(raw: Path, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    job = toy_job(raw, tmp_path, "asr", tokenizer)
    part = job.reader.parts()[0]
    other_codec = replace(job, codec={**job.codec, "fingerprint": "loudness-2"})
    other_text = replace(job, tokenizer=TextTokenizer.train(["other words"], 300))
    assert len({j.output_name(part) for j in (job, other_codec, other_text)}) == 3


@pytest.mark.parametrize(
    "executor",
    [pytest.param(LocalExecutor(2), id="local"), pytest.param(RayExecutor(2), id="ray", marks=pytest.mark.slow)],
)
def test_every_executor_writes_the_same_bytes(
    raw: Path, tmp_path: Path, tokenizer: TextTokenizer, executor: LocalExecutor | RayExecutor
) -> None:
    if isinstance(executor, RayExecutor):
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    here, there = (toy_job(raw, tmp_path / name, "asr", tokenizer, shard_bytes=30_000) for name in ("here", "there"))
    prepare_source(here)
    prepare_source(there, executor)
    assert contents(here.out) == contents(there.out)


def test_the_last_job_of_an_array_finishes_the_source(raw: Path, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    whole, array = (toy_job(raw, tmp_path / name, "asr", tokenizer, shard_bytes=30_000) for name in ("whole", "array"))
    prepare_source(whole)
    results = [prepare_source(array, LocalExecutor(1, share, 4)) for share in (2, 0, 3, 1)]
    assert results[:3] == [None, None, None] and results[3] is not None
    assert contents(whole.out) == contents(array.out)


def test_two_commands_that_prepare_one_source_do_not_work_side_by_side(
    raw: Path, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    job = toy_job(raw, tmp_path, "asr", tokenizer)
    with hold(job.out, "prepare", "preparing 'asr'"):
        with pytest.raises(UserError, match="in use by preparing 'asr' .process .* wait until that ends"):
            prepare_source(job, LocalExecutor(2))
        assert prepare_source(job, LocalExecutor(1, 0, 4)) is None  # a share of an array is another's work


KILLS = 20


class SlowCodec(LoudnessCodec):
    """Leaves time to be killed."""

    def encode(self, waves):  # noqa: ANN001, ANN201
        time.sleep(0.01)
        return super().encode(waves)


def prepare_slowly(job: TokenizeJob) -> None:
    prepare_source(replace(job, make_codec=SlowCodec))


def test_a_file_that_is_replaced_while_it_is_read_makes_no_source(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    write_corpus(tmp_path / "raw", "text", 60)
    job = toy_job(tmp_path / "raw", tmp_path / "out", "text", tokenizer)
    [path] = (tmp_path / "raw").glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)

    class Replacing(LocalExecutor):
        def __call__(self, *given: Any) -> None:
            path.write_text("".join(reversed(lines)))
            super().__call__(*given)

    with pytest.raises(
        UserError, match=f"^{path.name} was changed while '{job.source}' was prepared: rerun the same command"
    ):
        prepare_source(job, Replacing())
    assert not (job.out / "manifest.json").exists()
    path.write_text("".join(lines))

    class Late(type(job.reader)):  # type: ignore[misc]
        def parts(self) -> list[Part]:
            found = super().parts()
            path.write_text("".join(reversed(lines)))
            return found

    with pytest.raises(UserError, match=f"^{path.name} was changed while"):
        prepare_source(replace(job, reader=Late(**vars(job.reader))))
    for there in (lines, lines[::-1]):  # nothing is left that was made of the wrong one
        path.write_text("".join(there))
        made = prepare_source(job)
        assert made is not None and made.samples == 60
        source = PreparedSource(job.out)
        assert [source.read(number).id for number in range(60)] == [json.loads(line)["id"] for line in there]


def test_killed_anywhere_and_run_again_nothing_is_lost_or_done_twice(
    raw: Path, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    whole, killed = (
        toy_job(raw, tmp_path / name, "asr", tokenizer, shard_bytes=30_000, batch_seconds=8.0)
        for name in ("whole", "killed")
    )
    made = prepare_source(whole)
    assert made is not None and 1 < len(made.shards) < 6
    rng = np.random.default_rng(0)
    kept: dict[str, object] = {}
    for _ in range(KILLS):
        process = multiprocessing.get_context("fork").Process(target=prepare_slowly, args=(killed,))
        process.start()
        time.sleep(0.02 + float(rng.random()) * 0.25)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        if (killed.out / "manifest.json").exists():
            PreparedSource(killed.out)  # what looks whole is whole
        outputs = Outputs.find(killed.out)
        finished = {name: output.report for name, output in outputs.parts.items()}
        assert kept.items() <= finished.items()
        kept = finished
    prepare_source(killed)
    assert contents(whole.out) == contents(killed.out)
    assert not list(killed.out.glob("*.partial")) and not list(killed.out.glob(".*.partial"))


class FullDisk:
    """A file on a disk that has room for `room` bytes more."""

    room = 0

    def __init__(self, path: Path, mode: str):
        self._file = open(path, mode)  # noqa: SIM115

    def write(self, data: bytes) -> int:
        FullDisk.room -= len(data)
        if FullDisk.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def test_a_full_disk_is_said_and_leaves_no_half_written_shard(
    raw: Path, tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, job = (toy_job(raw, tmp_path / name, "asr", tokenizer) for name in ("whole", "full"))
    manifest = prepare_source(whole)
    assert manifest is not None
    monkeypatch.setattr(files, "open", FullDisk, raising=False)
    of_two_parts = [path for shard in manifest.shards[:2] for path in whole.out.glob(f"{Path(shard.name).stem}.*")]
    FullDisk.room = sum(path.stat().st_size for path in of_two_parts) + 3000
    with pytest.raises(UserError, match="no space left in .* rerun the command"):
        prepare_source(job)
    assert len(list(job.out.glob("*.done.json"))) == len(list(job.out.glob("*.tar"))) == 2
    assert not (job.out / "manifest.json").exists() and not list(job.out.glob(".*.partial"))
    monkeypatch.undo()
    prepare_source(job)
    assert contents(whole.out) == contents(job.out)


def write(seconds: float, rate: int = RATE, scale: float = 0.5, **options: str) -> Callable[[Path], None]:
    def spoiler(path: Path) -> None:
        soundfile.write(path, scale * np.sin(np.arange(int(seconds * rate)) / 9), rate, **options)

    return spoiler


def test_bad_audio_is_left_out_counted_and_named(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    write_corpus(tmp_path, "asr", 40)
    spoilers: dict[int, tuple[Callable[[Path], object], str | None]] = {
        3: (lambda path: path.unlink(), "unreadable audio"),
        5: (lambda path: path.write_bytes(b""), "unreadable audio"),
        8: (lambda path: path.write_bytes(b"RIFFnot audio at all"), "unreadable audio"),
        11: (write(31.0), "audio too long"),
        14: (write(3 * 3600.0, 4000, subtype="PCM_U8"), "audio too long"),
        17: (write(1.0, scale=0.0), "silent audio"),
        20: (lambda path: soundfile.write(path, np.full(800, np.nan), RATE, subtype="FLOAT"), "unreadable audio"),
        23: (write(1.0, 44_100), None),
        26: (write(1.0, subtype="PCM_U8"), None),
        29: (lambda path: soundfile.write(path, np.random.default_rng(0).random((800, 2)) - 0.5, RATE), None),
    }
    for number, (spoiler, _) in spoilers.items():
        spoiler(tmp_path / f"audio/asr{number:05d}.wav")
    job = replace(toy_job(tmp_path, tmp_path / "shards", "asr", tokenizer), load_audio=load_audio)
    manifest = prepare_source(job)
    expected = {f"asr-{number}": reason for number, (_, reason) in spoilers.items() if reason}
    assert manifest is not None and manifest.samples == 40 - len(expected)
    named = [json.loads(line) for line in (job.out / "skipped.jsonl").read_text().splitlines()]
    assert {line["where"]: line["reason"] for line in named} == expected
    assert all(f"asr{int(line['where'][4:]):05d}.wav" in line["problem"] for line in named)
    assert manifest.report["skipped"] == {"unreadable audio": 4, "audio too long": 2, "silent audio": 1}
    source = PreparedSource(job.out)
    assert [source.read(n).id for n in range(len(source))] == [
        f"asr-{n}" for n in range(40) if f"asr-{n}" not in expected
    ]


def test_a_source_that_is_broken_throughout_is_refused_with_its_counts(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    write_corpus(tmp_path, "asr", 30)
    for path in (tmp_path / "audio").iterdir():
        path.write_bytes(b"")
    job = replace(toy_job(tmp_path, tmp_path / "shards", "asr", tokenizer), load_audio=load_audio)
    with pytest.raises(
        UserError, match=r"no sample of 'asr' could be used:\n +30  unreadable audio, such as: asr-0"
    ) as error:
        prepare_source(job)
    assert str(job.out / "skipped.jsonl") in str(error.value)
    assert len((job.out / "skipped.jsonl").read_text().splitlines()) == 30
    assert not (job.out / "manifest.json").exists()


def test_an_empty_corpus_is_not_told_to_be_made_again(
    tmp_path: Path, tokenizer: TextTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    job = replace(toy_job(tmp_path, tmp_path / "shards", "asr", tokenizer), reader=JsonlReader(tmp_path))
    with pytest.raises(UserError, match="no sample of 'asr' could be used"):
        prepare_source(job)
    assert not caplog.records


def test_a_source_with_audio_needs_a_codec(raw: Path, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    job = replace(toy_job(raw, tmp_path, "asr", tokenizer), make_codec=None, codec={})
    with pytest.raises(UserError, match="audio without a codec, such as: .*'asr' has audio .* codec_folder=DIR"):
        prepare_source(job)


def test_a_codec_that_changes_underway_is_refused(raw: Path, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    job = toy_job(raw, tmp_path, "asr", tokenizer)
    changed = replace(job, make_codec=partial(LoudnessCodec, fingerprint="x"), codec={**job.codec, "fingerprint": "y"})
    with pytest.raises(UserError, match="the codec has changed"):
        prepare_source(changed)
