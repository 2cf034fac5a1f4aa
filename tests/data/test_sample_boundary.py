"""Whatever goes wrong with a sample, wherever, is that sample's; whatever goes wrong with the machine is no sample's."""

import errno
import gzip
import io
import json
import os
import resource
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_troublesome_corpora import job_of
from toy_codec import CrashingLoader, LoudnessCodec
from toy_corpus import toy_tokenizer
from troublesome import TAR, Case, chat, lines, tone, utterances
from troublesome import tar as tar_of

from vita_audio_pl.data import read_ahead, tokenize
from vita_audio_pl.data.executors import LocalExecutor
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.read_ahead import ReadAhead
from vita_audio_pl.data.readers import AudioRef, Part, RawSample, Unreadable
from vita_audio_pl.data.tokenize import MOST_NAMED, TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import load_audio
from vita_audio_pl.text import TextTokenizer

BAD = "bad"


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return toy_tokenizer()


def recordings(n: int, bad: int = 5, lines_per_part: int = 10) -> Case:
    rows = [chat(BAD if i == bad else f"s{i}", "<|audio|>", audios=[f"{i}.wav"]) for i in range(n)]
    files = {f"{i}.wav": tone(0.9 if i == bad else 0.5) for i in range(n)}
    return Case({"a.jsonl": lines(*rows), **files}, {}, {}, {"kind": "jsonl", "lines_per_part": lines_per_part})


@dataclass(frozen=True)
class FailingReader:
    """A reader that raises at the fifth sample of its first part."""

    inner: Any
    error: BaseException

    def parts(self) -> list[Part]:
        return self.inner.parts()

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        for number, raw in enumerate(self.inner.read(part)):
            if number == 5 and part == self.parts()[0]:
                raise self.error
            yield raw


@dataclass(frozen=True)
class FailingLoader:
    error: BaseException

    def __call__(self, audio: AudioRef, sample_rate: int, max_seconds: float) -> np.ndarray:
        if str(audio).endswith("/5.wav"):
            raise self.error
        return load_audio(audio, sample_rate, max_seconds)


@dataclass(frozen=True)
class FailingCodec(LoudnessCodec):
    """Fails where the long recording is among those to encode, as a codec does with one bad input in a batch."""

    error: BaseException = ValueError()

    def encode(self, waves):  # noqa: ANN001, ANN201
        if max(map(len, waves)) > 0.8 * self.sample_rate:
            raise self.error
        return super().encode(waves)


def failing_at(station: str, job: TokenizeJob, error: BaseException, patch: pytest.MonkeyPatch) -> TokenizeJob:
    match station:
        case "read":
            return replace(job, reader=FailingReader(job.reader, error))
        case "decode":
            return replace(job, load_audio=FailingLoader(error))
        case "encode":
            patch.setattr(tokenize, "_made", {})
            return replace(job, make_codec=lambda: FailingCodec(error=error))
    pack = tokenize.pack_sample

    def failing_pack(sample: tokenize.TokenizedSample) -> bytes:
        if sample.id == BAD:
            raise error
        return pack(sample)

    patch.setattr(tokenize, "pack_sample", failing_pack)
    return job


STATIONS = ("read", "decode", "encode", "store")


@pytest.mark.parametrize("station", STATIONS)
def test_an_error_that_nobody_foresaw_costs_one_sample_and_is_named_with_its_place(
    station: str, tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = failing_at(station, job_of(recordings(30), tmp_path, tokenizer), KeyError("odd \ud83d"), monkeypatch)
    manifest = prepare_source(job)
    assert manifest is not None and manifest.report["skipped"] == {"unexpected KeyError": 1}
    lost = 4 if station == "read" else 0  # what follows in the part
    assert manifest.samples == 29 - lost and manifest.report["unread"] == lost
    (named,) = [json.loads(line) for line in (job.out / "skipped.jsonl").read_text().splitlines()]
    assert "test_sample_boundary.py:" in named["trace"] and "KeyError: 'odd \\ud83d'" in named["trace"]
    assert named["where"] == ("a.jsonl:1" if station == "read" else BAD)
    PreparedSource(job.out)


def test_what_is_written_of_a_sample_left_out_holds_no_credentials(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [chat(f"s{i}", "<|audio|>", audios=["https://me:SECRET@host/x.wav?sig=TOKEN"]) for i in range(3)]
    good = [chat(f"t{i}", "hello there") for i in range(40)]
    job = job_of(Case({"a.jsonl": lines(*rows, *good)}, {}, {}, {"kind": "jsonl"}), tmp_path, tokenizer)
    assert prepare_source(job) is not None
    told = (job.out / "skipped.jsonl").read_text()
    assert told.count("https://host/x.wav") == 3
    written = b"".join(path.read_bytes() for path in job.out.rglob("*") if path.is_file())
    assert b"SECRET" not in written and b"TOKEN" not in written


@pytest.mark.parametrize("station", STATIONS)
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOSPC, "No space left"),
        MemoryError(),
        KeyboardInterrupt(),
    ],
    ids=["no file handles", "no space", "no memory", "Ctrl-C"],
)
def test_what_the_machine_lacks_is_no_fault_of_a_sample(
    station: str, error: BaseException, tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(recordings(30), tmp_path, tokenizer)
    with monkeypatch.context() as patch, pytest.raises((type(error), UserError)) as raised:
        prepare_source(failing_at(station, job, error, patch))
    if isinstance(raised.value, UserError):
        assert "no space left" in str(raised.value)
    monkeypatch.setattr(tokenize, "_made", {})
    manifest = prepare_source(job)  # the same command goes on, and nothing was left out for it
    assert manifest is not None and manifest.samples == 30 and not manifest.report["skipped"]


def test_too_much_that_is_left_out_ends_in_a_table_until_the_corpus_is_mended(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    job = replace(job_of(recordings(100, bad=-1), tmp_path, tokenizer), shard_bytes=0)
    missing = {number: tmp_path / f"corpus/{number}.wav" for number in range(40, 61)}
    for path in missing.values():
        path.rename(path.with_suffix(".away"))
    (tmp_path / "corpus/7.wav").write_bytes(b"")
    for _ in range(2):  # the same command says the same again
        with pytest.raises(
            UserError, match=r"22 of 100 samples of 'corpus' \(22.0%\) could not be used, more than"
        ) as told:
            prepare_source(job)
    assert "\n        22  unreadable audio, such as: s7: " in str(told.value) and "max_skipped=0.23" in str(told.value)
    assert len((job.out / "skipped.jsonl").read_text().splitlines()) == 22 and not (job.out / "manifest.json").exists()
    allowed = prepare_source(replace(job, max_skipped=0.23, out=tmp_path / "allowed"))
    assert allowed is not None and allowed.samples == 78
    for path in missing.values():
        path.with_suffix(".away").rename(path)
    times = {path: path.stat().st_mtime_ns for path in job.out.glob("*.tar")}
    mended = prepare_source(job)
    assert len([path for path, changed in times.items() if path.stat().st_mtime_ns != changed]) == 4
    assert mended is not None and mended.samples == 99 and mended.report["skipped"] == {"unreadable audio": 1}


def test_a_command_that_was_killed_makes_no_part_twice_however_much_was_left_out(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    job = replace(job_of(recordings(30, bad=-1), tmp_path, tokenizer), shard_bytes=0)
    for number in range(5, 20):
        (tmp_path / f"corpus/{number}.wav").unlink()
    assert prepare_source(job, LocalExecutor(1, share=0, shares=2)) is None
    times = {path: path.stat().st_mtime_ns for path in job.out.glob("*.tar")}
    manifest = prepare_source(job)
    assert manifest is not None and manifest.samples == 15
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_transcripts_of_other_recordings_are_all_counted_and_the_first_are_named(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    others = "".join(f"b{n:05} hello\n" for n in range(MOST_NAMED + 3))
    files = {"wav.scp": b"a a.wav\n", "text": f"a hello\n{others}".encode(), "a.wav": tone()}
    job = replace(job_of(Case(files, {}, {}, {"kind": "kaldi"}, "asr"), tmp_path, tokenizer), max_skipped=1.0)
    manifest = prepare_source(job)
    assert manifest is not None and manifest.report["skipped"] == {"no recording": MOST_NAMED + 3}
    named = [json.loads(line)["where"] for line in (job.out / "skipped.jsonl").read_text().splitlines()]
    assert named == [f"b{n:05}" for n in range(MOST_NAMED)]


def test_twenty_samples_may_be_left_out_of_any_source(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    job = job_of(recordings(22, bad=-1), tmp_path, tokenizer)
    for number in range(20):
        (tmp_path / f"corpus/{number}.wav").unlink()
    manifest = prepare_source(job)
    assert manifest is not None and manifest.samples == 2 and manifest.report["skipped"] == {"unreadable audio": 20}


def test_a_lost_file_weighs_what_the_others_hold(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    files = {f"{n}.tar": tar_of(*utterances(*map(str, range(30)))) for n in range(3)}
    files["2.tar"] = files["2.tar"][:40_000]
    job = job_of(Case(files, {}, {}, TAR, "asr"), tmp_path, tokenizer)
    with pytest.raises(UserError, match="about as many in what could not be read of damaged files and archives"):
        prepare_source(job)


def test_a_part_that_kills_its_worker_does_not_stop_the_others(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    job = replace(job_of(recordings(20), tmp_path, tokenizer), load_audio=CrashingLoader(os.getpid()))
    with pytest.raises(UserError, match=r"1 of 2 parts of 'corpus' .* a\.jsonl:1: its process died"):
        prepare_source(job, LocalExecutor(2))
    assert len(list(job.out.glob("*.done.json"))) == 1
    manifest = prepare_source(job)
    assert manifest is not None and manifest.samples == 20


def sparse_tar(size: int) -> bytes:
    """A tar of a few kilobytes whose member says that it is `size` bytes of holes, as GNU tar writes them."""
    info = tarfile.TarInfo("1.wav")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def extended_tar(size: int) -> bytes:
    """A compressed tar whose member has an extended header of so many bytes."""
    info = tarfile.TarInfo("./PaxHeaders/1.wav")
    info.type, info.size = tarfile.XHDTYPE, size
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
        packed.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(size >> 20):
            packed.write(bytes(1 << 20))
    return file.getvalue()


def huge_member(size: int) -> bytes:
    info = tarfile.TarInfo("1.wav")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("bomb", "reasons"),
    [
        (lambda: sparse_tar(4 << 30) * 16, {"member too large": 16}),
        (lambda: extended_tar(256 << 20), {"damaged archive": 1}),
        (lambda: huge_member(1 << 40), {"member too large": 1, "damaged archive": 1}),
    ],
    ids=["holes", "extended header", "huge member"],
)
def test_archives_that_swell_take_no_memory(
    bomb: Callable[[], bytes], reasons: dict[str, int], tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    files = {"a.tar": tar_of(*utterances("1")), "b.tar": bomb() + tar_of(*utterances("2", "3"))}
    job = job_of(Case(files, {}, {}, TAR, "asr"), tmp_path, tokenizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest = prepare_source(job)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert manifest is not None and manifest.samples >= 1
    assert {reason: manifest.report["skipped"].get(reason) for reason in reasons} == reasons


def test_audio_out_of_archives_is_held_only_as_far_as_it_is_needed(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "_MOST_HELD", 50_000)
    job = job_of(Case({"a.tar": tar_of(*utterances(*map(str, range(40))))}, {}, {}, TAR, "asr"), tmp_path, tokenizer)
    read, taken, most = 0, 0, 0

    def counted(*arguments: Any) -> Iterator[Any]:
        nonlocal read
        for raw in read_part(*arguments):
            read += 1
            yield raw

    def counting(task: Any, *arguments: Any) -> float:
        nonlocal taken, most
        most, taken = max(most, read - taken), taken + 1
        return take(task, *arguments)

    read_part, take = tokenize.read_part, ReadAhead._take
    monkeypatch.setattr(tokenize, "read_part", counted)
    monkeypatch.setattr(ReadAhead, "_take", counting)
    manifest = prepare_source(job)
    assert manifest is not None and manifest.samples == 40
    assert most <= 50_000 // len(tone()) + 1
