"""Parts merged into shards of a stated size: the same samples in fewer files, and nothing lost on the way."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from bit_flips import flip
from toy_codec import load_whole_file
from toy_corpus import toy_job, toy_tokenizer, write_corpus

from vita_audio_pl.data import finish, merge, outputs
from vita_audio_pl.data.index import IndexPiece
from vita_audio_pl.data.outputs import Output, Outputs
from vita_audio_pl.data.prepare_source import finished_manifest, prepare_source
from vita_audio_pl.data.prepared import Manifest, PreparedSource
from vita_audio_pl.data.readers import AudioRef, LeftOut
from vita_audio_pl.data.shards import decode_block
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.data.tools.lint import lint_source
from vita_audio_pl.data.tools.status import status_of
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import names_in


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_corpus(folder, "asr", 260)
    return folder


def job_of(raw: Path, shards: Path, shard_bytes: int, heard: bool = True) -> TokenizeJob:
    job = toy_job(raw, shards, "asr", toy_tokenizer(), shard_bytes)
    return replace(job, placeholders=(lambda samples: samples // 1000) if heard else None)


def read_all(folder: Path) -> list[str]:
    source = PreparedSource(folder, with_audio=True)
    columns = ("crc", "prompt_text", "prompt_codes", "prompt_frames", "answer_text", "answer_codes", "flags")
    rows = np.stack([source.index[name] for name in columns], 1).tolist()
    return [
        repr((source.read(n), [wave.tobytes() for wave in source.read_clips(n)], rows[n])) for n in range(len(source))
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_merged_shards_hold_what_their_parts_held(raw: Path, tmp_path: Path) -> None:
    apart, joined = (job_of(raw, tmp_path / name, size) for name, size in (("apart", 0), ("joined", 10**6)))
    assert len((prepare_source(apart) or pytest.fail()).shards) == 6
    manifest = prepare_source(joined)
    size = sum(path.stat().st_size for path in apart.out.glob("*.tar"))
    assert manifest is not None and 1 < len(manifest.shards) <= size // 10**6 + 1
    full = [one.bytes + other.bytes for one, other in zip(manifest.shards, manifest.audio_shards, strict=True)]
    assert all(bytes > 10**6 for bytes in full[:-1])
    assert read_all(joined.out) == read_all(apart.out) and lint_source(joined.out).clean
    endings = (".tar", ".audio.tar", ".index", ".audio.npy", ".done.json")
    assert {name for name in files(joined.out) if len(name.split(".")[0]) == 20} == {
        shard.name.removesuffix(".tar") + ending for shard in manifest.shards for ending in endings
    }
    urls = [str(joined.out / shard.name) for shard in manifest.shards]
    members = list(wds.WebDataset(urls, shardshuffle=False))
    assert len({(member["__url__"], member["__key__"]) for member in members}) == len(members)
    ids = [sample.id for member in members for sample in decode_block(member["block"])]
    assert ids == [f"asr-{n}" for n in range(260)]
    status = status_of(joined.out)
    assert status.ready and status.done == status.parts == 6


def test_no_shard_is_larger_than_offsets_reach() -> None:
    sizes = [2**33, 2**33, 1, 2**32, 2**34 + 1, 2**33]
    names = [str(number) for number in range(len(sizes))]
    reports = [{"shard": {"bytes": size, "samples": 1}, "sums": {}} for size in sizes]
    parts = {name: Output(report, name) for name, report in zip(names, reports, strict=True)}
    planned = merge.planned_shards(names, Outputs(Path(), {}, {}, parts), least=10**12)
    assert list(planned.values()) == [["0", "1"], ["2", "3"], ["4"], ["5"]]


def test_another_size_and_back_makes_the_same_bytes_of_what_is_there(raw: Path, tmp_path: Path) -> None:
    """Without reading the corpus again; shards that a manifest has named stay until they are pruned."""
    expected = {}
    for size in (0, 10**6, 10**9):
        job = job_of(raw, tmp_path / str(size), size)
        prepare_source(job)
        expected[size] = files(job.out)
    job = replace(job_of(raw, tmp_path / "0", 0), load_audio=lambda *_: pytest.fail("it was read again"))
    told: list[str] = []
    for size in (10**6, 10**9, 0):
        other = replace(job, shard_bytes=size)
        before = Manifest.load(job.out).shards
        manifest = prepare_source(other, tell=told.append)
        assert manifest is not None and {shard.name for shard in before} <= files(job.out).keys()
        assert "in case a training reads them; prune=true removes them" in told[-1]
        assert prepare_source(other, prune=True, tell=told.append) == manifest
        assert files(job.out) == expected[size]
        assert finished_manifest(job) == manifest  # which is what a run asks that reads


def test_a_changed_line_and_a_trial_go_with_merged_shards(raw: Path, tmp_path: Path) -> None:
    here = tmp_path / "raw"
    here.mkdir()
    (here / "audio").symlink_to(raw / "audio")
    text = (raw / "asr.jsonl").read_text()
    (here / "asr.jsonl").write_text(text)
    job = job_of(here, tmp_path / "shards", 10**9, heard=False)
    assert prepare_source(job, most_parts=2) is not None
    whole = prepare_source(job)
    assert whole is not None and len(whole.shards) == 1 and prepare_source(job, most_parts=2) == whole
    (here / "asr.jsonl").write_text(text.replace('"asr-60"', '"asr-new"'))
    made = Outputs.find(job.out).parts.keys()
    changed = prepare_source(job)
    assert changed is not None and changed.shards != whole.shards
    assert len(Outputs.find(job.out).parts.keys() - made) == 1  # the others were taken from the merged shard
    source = PreparedSource(job.out)
    assert [source.read(n).id for n in (59, 60, 61, 259)] == ["asr-59", "asr-new", "asr-61", "asr-259"]
    (job.out / changed.shards[0].name).unlink()  # and what a trial is made of then, is made anew
    assert prepare_source(job) == changed


def test_a_part_that_is_made_again_as_it_was_is_made_once(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its merged shard; and a command that was killed while it merged makes none again, whatever that left out."""
    heard: list[str] = []

    def load(audio: AudioRef, rate: int, most: float) -> np.ndarray:
        heard.append(str(audio))
        if "asr0005" in str(audio):  # 10 of the 50 in the second part
            raise LeftOut("unreadable audio", f"{audio}: not today")
        return load_whole_file(audio, rate, most)

    job = replace(job_of(raw, tmp_path, 10**9, heard=False), load_audio=load)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, "merge_indexes", interrupted)
        prepare_source(job)
    whole = prepare_source(job)
    assert whole is not None and whole.report["skipped"] == {"unreadable audio": 10} and len(heard) == 260
    before = files(job.out)
    (job.out / "manifest.json").unlink()
    assert prepare_source(job) == whole and files(job.out) == before and len(heard) == 310
    assert prepare_source(job) == whole and len(heard) == 310


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_others_do_in_a_folder_is_looked_at_again_only_where_something_went_away(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(raw, tmp_path, 0, heard=False)
    assert prepare_source(job) is not None
    apart, parts = names_in(job.out), Outputs.find(job.out).parts.keys()
    joined = prepare_source(replace(job, shard_bytes=10**9), prune=True)
    assert joined is not None and len(joined.shards) == 1
    assert Outputs.find(job.out, apart).parts.keys() == parts  # merged since they were listed
    (job.out / joined.shards[0].name).write_bytes(b"cut")
    listings = iter([[*names_in(job.out), f"{n}.partial"] for n in range(2)])  # a third would be one too many
    monkeypatch.setattr(outputs, "names_in", lambda folder: next(listings))
    assert not Outputs.find(job.out).parts


def test_nothing_is_removed_before_all_of_it_lies_elsewhere(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(raw, tmp_path, 10**9, heard=False)
    assert prepare_source(replace(job, shard_bytes=0)) is not None
    before = files(job.out)
    shard = next(job.out.glob("*.tar"))
    mine = shard.with_suffix(".tar.mine")
    mine.write_text("precious")
    flip(shard, 8 * 2000)
    with pytest.raises(
        UserError, match=f"{shard} cannot be merged .* is damaged: .* delete that file and rerun the command"
    ):
        prepare_source(job)
    assert files(job.out).keys() == {*before, mine.name}
    flip(shard, 8 * 2000)
    make = merge.merge_indexes

    def spoiling(pieces: Sequence[IndexPiece], out: Path) -> int:
        flip(out.with_suffix(".tar"), 8 * 2000)  # what was written is not what lies there
        return make(pieces, out)

    monkeypatch.setattr(merge, "merge_indexes", spoiling)
    with pytest.raises(UserError, match=r"\.tar is damaged: .*; rerun the command"):
        prepare_source(job)
    assert before.items() <= files(job.out).items() and len(lint_source(job.out).problems) == 0
    monkeypatch.undo()
    assert len((prepare_source(job, prune=True) or pytest.fail()).shards) == 1
    assert mine.read_text() == "precious" and len(list(job.out.glob("*.tar"))) == 1
