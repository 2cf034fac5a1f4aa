import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from toy_corpus import Corpus

from vita_audio_pl.data.prepared import BrokenSample, PreparedSource
from vita_audio_pl.data.samples import TokenizedSample, pack_sample
from vita_audio_pl.data.shards import ShardWriter, decode_block, iterate_shard
from vita_audio_pl.errors import UserError
from vita_audio_pl.text import TextIds, Turn


@pytest.fixture
def source(corpus: Corpus, tmp_path: Path) -> Path:
    """A copy of a prepared source that a test may damage."""
    shutil.copytree(corpus.shards / "asr", tmp_path / "asr")
    return tmp_path / "asr"


def test_plain_webdataset_reads_the_shards(corpus: Corpus) -> None:
    source = PreparedSource(corpus.shards / "asr")
    urls = [str(source.folder / shard.name) for shard in source.manifest.shards]
    members = wds.WebDataset(urls, shardshuffle=False, empty_check=False)
    samples = list(members.map(lambda member: decode_block(member["block"])).unlisted())
    assert [sample.id for sample in samples] == [f"asr-{i}" for i in range(120)]
    for i in (0, 49, 50, 119):
        here = source.read(i)
        assert here.id == samples[i].id
        assert here.turns[0].segments[1].codes.tolist() == samples[i].turns[0].segments[1].codes.tolist()


def test_shards_are_plain_tars_with_whole_second_times(corpus: Corpus) -> None:
    for path in (corpus.shards / "asr").glob("*.tar"):
        with tarfile.open(path, "r:") as tar:
            assert all(member.mtime == 0 and not member.pax_headers for member in tar)


def test_a_shard_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    sample = pack_sample(TokenizedSample("a", (Turn("assistant", (TextIds(np.arange(5)),)),)))
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "x.tar", block=2) as writer:
        for _ in range(5):
            writer.add(sample)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_byte_is_found_and_named(source: Path) -> None:
    shard = sorted(source.glob("*.tar"))[0]
    offset, data = list(iterate_shard(shard))[3]
    with open(shard, "r+b") as file:
        file.seek(offset + len(data) // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    prepared = PreparedSource(source)
    number = [s.name for s in prepared.manifest.shards].index(shard.name)
    first = int(np.flatnonzero(prepared.index["shard"] == number)[0])
    with pytest.raises(BrokenSample, match=f"sample {first + 3} of 'asr' in .*{shard.name}: its checksum"):
        prepared.read(first + 3)
    assert prepared.read(first + 2).id


def test_a_truncated_shard_is_refused_before_training(source: Path) -> None:
    shard = sorted(source.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(UserError, match=f"{shard.name} has .* bytes where .* were written"):
        PreparedSource(source)


def test_a_missing_shard_is_refused_before_training(source: Path) -> None:
    shard = sorted(source.glob("*.tar"))[0]
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        PreparedSource(source)


def test_an_index_of_other_shards_is_refused(source: Path, corpus: Corpus) -> None:
    shutil.copy(corpus.shards / "tts" / "index.bin", source / "index.bin")
    with pytest.raises(UserError, match=r"index\.bin has .* bytes where|index\.bin is damaged"):
        PreparedSource(source)


def test_a_manifest_cannot_lead_out_of_its_folder(source: Path) -> None:
    shard = sorted(source.glob("*.tar"))[0]
    manifest = source / "manifest.json"
    manifest.write_text(manifest.read_text().replace(shard.name, f"../{shard.name}"))
    with pytest.raises(UserError, match="no plain file name"):
        PreparedSource(source)


def test_a_damaged_manifest_is_refused(source: Path) -> None:
    manifest = source / "manifest.json"
    for text in ("{", "[]", '{"format": 1}', '{"format": 99}'):
        manifest.write_text(text)
        with pytest.raises(UserError, match="manifest.json"):
            PreparedSource(source)
    manifest.unlink()
    with pytest.raises(UserError, match="not prepared"):
        PreparedSource(source)
