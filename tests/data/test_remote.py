"""From a store into a store, and trained on from there: the same bytes as on this machine, wherever it is killed."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from bit_flips import flip
from remote_stores import Served, put, s3, stored
from toy_codec import RATE
from toy_corpus import Corpus, rows_of, take, toy_job, toy_tokenizer, write_corpus

from vita_audio_pl.config.fields import check_settings
from vita_audio_pl.data.options import DataOptions, PrepareConfig
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import SOURCE
from vita_audio_pl.data.readers import Reader
from vita_audio_pl.data.readers.jsonl import JsonlReader
from vita_audio_pl.data.readers.kaldi import KaldiReader
from vita_audio_pl.data.readers.tables import TableReader
from vita_audio_pl.data.readers.webdataset import WebDatasetReader
from vita_audio_pl.data.staging import beside
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import load_audio
from vita_audio_pl.storage import lease, remote
from vita_audio_pl.storage.checksums import sum_of_folder, write_checksums
from vita_audio_pl.storage.lease import Holder, InUse, hold
from vita_audio_pl.storage.owned import Owned
from vita_audio_pl.storage.places import Place, place
from vita_audio_pl.storage.remote import RemotePath
from vita_audio_pl.storage.remote_file import Unreachable


@pytest.fixture(scope="module")
def bucket() -> Iterator[RemotePath]:
    with pytest.MonkeyPatch.context() as patch, s3(patch) as url:
        yield RemotePath.of(url)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_corpus(folder, "asr", 24)
    return folder


def job_of(root: Place, shards: Place) -> TokenizeJob:
    reader = JsonlReader(root, ("asr.jsonl",), lines_per_part=8)
    job = toy_job(root, shards, "asr", toy_tokenizer(), shard_bytes=15_000)  # type: ignore[arg-type]  # of two parts
    return replace(job, reader=reader, load_audio=load_audio)


def prepare_until(job: TokenizeJob, write: int) -> None:
    """Ends by SIGKILL before the store is written to for the `write`th time."""
    ask: Callable[..., Any] = RemotePath._ask
    left = write

    def counted(self: RemotePath, request: Callable[[Any, str], Any]) -> Any:
        def asked(files: Any, path: str) -> Any:
            nonlocal left
            if {"pipe_file", "put_file", "rm_file"} & set(request.__code__.co_names):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
            return request(files, path)

        return ask(self, asked)

    RemotePath._ask = counted  # type: ignore[method-assign]  # in a process of its own
    prepare_source(job)


def test_from_s3_to_s3_it_is_what_it_is_here_wherever_it_is_killed(
    bucket: RemotePath, raw: Path, tmp_path: Path
) -> None:
    here, there = job_of(raw, tmp_path), job_of(put(raw, bucket / "raw"), bucket / "shards")
    expected = prepare_source(here)
    for write in range(1, 60, 3):  # each goes on from where the one before was killed
        child = multiprocessing.get_context("fork").Process(target=prepare_until, args=(there, write))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert child.exitcode == 0 and write > 9
    assert stored(there.out) == stored(here.out)
    assert not Owned.open(there.out, SOURCE).foreign()
    changed = {path: path.stat() for path in there.out.glob("*")}
    assert prepare_source(there) == expected and {path: path.stat() for path in there.out.glob("*")} == changed


@pytest.mark.slow  # some thirty processes
def test_killed_before_each_of_its_writes_it_goes_on_to_the_same_shards(
    bucket: RemotePath, raw: Path, tmp_path: Path
) -> None:
    here, root = job_of(raw, tmp_path), put(raw, bucket / "raw")
    prepare_source(here)
    for write in range(1, 100):
        there = job_of(root, bucket / f"killed-{write}")
        child = multiprocessing.get_context("fork").Process(target=prepare_until, args=(there, write))
        child.start()
        child.join()
        assert prepare_source(there) is not None and stored(there.out) == stored(here.out)
        if child.exitcode == 0:
            break  # it had fewer writes
        assert child.exitcode == -signal.SIGKILL
    assert child.exitcode == 0 and write > 20
    print(f"{write - 1} places")


def test_training_from_s3_is_training_from_a_folder(bucket: RemotePath, corpus: Corpus, tmp_path: Path) -> None:
    there = put(corpus.shards, bucket / "corpus/shards")
    module = replace(corpus, shards=there).module(cache=str(tmp_path / "cache"))  # type: ignore[arg-type]
    here = [rows_of(batch) for batch in take(corpus.module(), 12)]
    assert [rows_of(batch) for batch in take(module, 5)] == here[:5]
    resumed = replace(corpus, shards=there).module(cache=str(tmp_path / "other"))  # type: ignore[arg-type]
    resumed.load_state_dict(module.state_dict())
    assert [rows_of(batch) for batch in take(resumed, 7)] == here[5:]


def test_what_lies_beside_remote_shards_is_verified_at_every_start(
    bucket: RemotePath, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toy_tokenizer().save(tmp_path / "tokenizer")
    write_checksums(tmp_path / "tokenizer", sum_of_folder(tmp_path / "tokenizer"))
    home = put(tmp_path / "tokenizer", bucket / "beside/tokenizer")
    options = DataOptions(shards=str(bucket / "beside/shards"), cache=str(tmp_path / "cache"))
    copy = beside(options, "tokenizer") / "tokenizer.json"
    good = copy.read_bytes()
    assert good == (tmp_path / "tokenizer/tokenizer.json").read_bytes() and not beside(options, "codec").exists()
    flip(copy, 8 * 100)
    beside(options, "tokenizer")
    assert copy.read_bytes() == good and "copying it again" in caplog.text
    (home / "tokenizer.json").write_bytes(good[:-1] + b" ")
    with pytest.raises(UserError, match="tokenizer.json is damaged: bytes .* it was copied from s3://lab/beside"):
        beside(options, "tokenizer")
    (home / "checksums.json").unlink()
    assert beside(options, "tokenizer") == copy.parent and copy.read_bytes() == good[:-1] + b" "


def tars_and_tables(root: Path) -> dict[str, Callable[[Place], Reader]]:
    """A corpus in three layouts, with recordings that are larger than one request of a remote file."""
    import tarfile

    import pyarrow
    from pyarrow import parquet

    waves = [np.sin(np.arange(RATE * n) / 5).astype(np.float32) for n in (1, 2, 3)]
    rows = []
    for number, wave in enumerate(waves):
        soundfile.write(root / f"{number}.wav", wave, RATE)
        (root / f"{number}.txt").write_text(f"the duck {number}")
        rows.append(
            {"id": f"t{number}", "audio": {"bytes": (root / f"{number}.wav").read_bytes()}, "text": f"cow {number}"}
        )
        rows[-1]["noise"] = os.urandom(3 << 20)
    (root / "deep").mkdir()
    with tarfile.open(root / "deep/a b.tar", "w") as tar:
        for path in sorted(root.glob("?.*")):
            tar.add(path, path.name)
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "table.parquet", row_group_size=1)
    (root / "wav.scp").write_text("".join(f"u{n} {n}.wav\n" for n in range(3)))
    (root / "text").write_text("".join(f"u{n} the sheep {n}\n" for n in range(3)))
    return {
        "tar": lambda place: WebDatasetReader(place, files=("**/*.tar",)),
        "parquet": lambda place: TableReader(
            place, {"id": "id", "audio": "audio", "text": "text"}, task="asr", files=("*.parquet",)
        ),
        "kaldi": lambda place: KaldiReader(place),
    }


@pytest.mark.parametrize("where", ["s3", "http"])
def test_every_layout_is_read_in_ranges(bucket: RemotePath, tmp_path: Path, where: str) -> None:
    (tmp_path / "raw").mkdir()
    readers, server = tars_and_tables(tmp_path / "raw"), Served(tmp_path / "raw")
    root = {
        "s3": lambda: put(tmp_path / "raw", bucket / "layouts"),
        "http": lambda: place(server.url),
    }[where]()
    try:
        for name, reader in readers.items():
            here, there = (
                replace(job_of(tmp_path, tmp_path / side), reader=reader(corpus), source=name)
                for side, corpus in (("here", tmp_path / "raw"), ("there", root))
            )
            prepare_source(here)
            prepare_source(there)
            of_here, of_there = (  # but for the reports, which tell the time of the corpus's files
                {name: data for name, data in stored(job.out).items() if "done" not in name} for job in (here, there)
            )
            assert of_there == of_here and any(name.endswith(".tar") for name in of_here)
            shutil.rmtree(here.out)
            shutil.rmtree(there.out)
        if where == "http":
            assert 0 < server.sent["table.parquet"] < (tmp_path / "raw/table.parquet").stat().st_size
    finally:
        server.close()


def test_of_a_long_recording_the_ranges_that_are_needed_are_read(tmp_path: Path) -> None:
    from vita_audio_pl.codecs import read_audio

    wave = np.random.default_rng(0).normal(0, 0.1, 16_000 * 400).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", wave, 16_000)
    server = Served(tmp_path)
    try:
        there = place(f"{server.url}/long.wav")
        assert np.array_equal(
            read_audio(there, 16_000, start=300.0, seconds=2.0),
            read_audio(tmp_path / "long.wav", 16_000, start=300.0, seconds=2.0),
        )
        assert server.sent["long.wav"] < 2 << 20
    finally:
        server.close()


def test_storage_that_does_not_answer_costs_no_sample(
    bucket: RemotePath, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    job = job_of(put(raw, place("memory://unsteady")), tmp_path)
    kind, cat = type(place("memory://unsteady")._store()), {}
    plain = kind.cat_file

    def unsteady(self: Any, path: str, *more: Any, **options: Any) -> bytes:
        cat[path] = cat.get(path, 0) + 1
        if path.endswith("00017.wav") or cat[path] == 1:  # every file once, and one for good
            raise TimeoutError("no answer")
        return bytes(plain(self, path, *more, **options))

    monkeypatch.setattr(kind, "cat_file", unsteady)
    with pytest.raises(Unreachable, match="no answer.*asr00017.wav"):
        prepare_source(job)
    assert not (job.out / "skipped.jsonl").exists()
    monkeypatch.setattr(kind, "cat_file", plain)
    assert (made := prepare_source(job)) is not None and made.samples == 24 and not made.report["skipped"]


def test_one_writer_in_a_store_and_a_silent_one_is_followed(
    bucket: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bucket / "leases"
    with hold(folder, "prepare", "preparing"), pytest.raises(InUse, match="s3://lab/leases is in use by preparing"):
        with hold(folder, "prepare", "preparing"):
            pass
    assert folder.names() == []
    elsewhere = replace(Holder.here("preparing there"), machine="another", host="other", token="t")
    path = folder / ".lease-prepare-000001"
    path.write_bytes(lease._content(elsewhere, beat=3))
    monkeypatch.setattr(lease, "SILENT", 0.2)
    with hold(folder, "prepare", "preparing"):  # it has not moved for a while
        assert folder.names() == [".lease-prepare-000002"]
    beats = iter(range(4, 1000))
    read = lease._read

    def beating(of: Place) -> tuple[bytes, float]:
        path.write_bytes(lease._content(elsewhere, beat=next(beats)))
        return read(of)

    path.write_bytes(lease._content(elsewhere, beat=3))
    monkeypatch.setattr(lease, "SILENT", 60.0)
    monkeypatch.setattr(lease, "_read", beating)
    with pytest.raises(InUse, match="in use by preparing there .process .* on other"), hold(folder, "prepare", "p"):
        pass


def test_a_folder_of_others_in_a_store_is_left_alone(bucket: RemotePath, raw: Path) -> None:
    job = job_of(raw, bucket / "others")
    (job.out / "manifest.json").write_bytes(b"precious")
    with pytest.raises(UserError, match="s3://lab/others/asr is not a prepared source .*nothing there is touched"):
        prepare_source(job)
    assert stored(job.out) == {"manifest.json": b"precious"}


def test_what_cannot_be_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="https://host/x is read-only"):
        place("https://host/x").check_writable()
    with pytest.raises(UserError, match="root is 's4://lab/x': fsspec knows no protocol 's4'"):
        place("s4://lab/x", "root")
    with pytest.raises(UserError, match="a local path"):
        place("memory://x") / "/etc/passwd"
    assert str(place("https://me:secret@host/a/../b?token=1") / "../../c") == "https://host/c"
    assert place("file:///a%20b") == Path("/a b")
    with pytest.raises(UserError, match="out is the address s3://lab/x"):
        check_settings(PrepareConfig(samples="a.jsonl", model="m", out="s3://lab/x"))

    def missing(protocol: str) -> type:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote.fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"is not installed: pip install 'vita-audio-pl\[remote\]'"):
        place("s3://lab/x")
