"""A flipped bit of a prepared source, in whatever file of it, is found where the bytes are used, and named."""

import errno
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from bit_flips import flip, flipped, some_bits
from toy_corpus import N_CODES, Corpus, toy_job, toy_tokenizer, write_corpus

from tests.patience import PATIENCE
from vita_audio_pl import preparation
from vita_audio_pl.data import executors
from vita_audio_pl.data.clips import AUDIO_INDEX
from vita_audio_pl.data.outputs import is_finished
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import BrokenSample, PreparedSource, open_sources
from vita_audio_pl.data.samples import TokenizedSample, pack_sample, unpack_sample
from vita_audio_pl.data.shards import decode_block
from vita_audio_pl.data.tools.lint import lint_source
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import CHECKSUMS
from vita_audio_pl.storage.open_files import open_files
from vita_audio_pl.text import AudioCodes, Renderer, RenderOptions, Turn

FLIPS = 60


@pytest.fixture(scope="module")
def with_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with the audio outside its answers and a quarantined sample; tests put back what they change."""
    root = tmp_path_factory.mktemp("with_audio")
    write_corpus(root, "asr", 110)
    job = replace(toy_job(root, root / "shards", "asr", toy_tokenizer()), placeholders=lambda samples: samples // 320)
    prepare_source(job)
    PreparedSource(job.out).quarantine({3: "its checksum does not agree"})
    return job.out


@pytest.fixture
def source(corpus: Corpus, tmp_path: Path) -> Path:
    """A copy of a prepared source that a test may damage."""
    shutil.copytree(corpus.shards / "asr", tmp_path / "asr")
    return tmp_path / "asr"


@pytest.mark.parametrize("name", ["index.bin", "manifest.json", "quarantine.json", CHECKSUMS, AUDIO_INDEX])
def test_no_flipped_bit_of_what_is_read_at_start_gets_past_training_or_lint(with_audio: Path, name: str) -> None:
    path = with_audio / name
    for bit in some_bits(path, FLIPS):
        with flipped(path, bit):
            with pytest.raises(UserError, match=name):
                PreparedSource(with_audio, with_audio=True)
            try:
                told = " ".join(lint_source(with_audio).problems)
            except UserError as error:
                told = str(error)
            assert str(path) in told
    assert PreparedSource(with_audio, with_audio=True).quarantined and lint_source(with_audio).clean


@pytest.mark.parametrize("ending", [".tar", ".audio.tar"])
def test_no_flipped_bit_of_a_shard_reaches_a_sample_or_gets_past_lint(with_audio: Path, ending: str) -> None:
    intact = PreparedSource(with_audio, with_audio=True)
    shard = with_audio / (intact.manifest.shards if ending == ".tar" else intact.manifest.audio_shards)[2].name
    samples = np.flatnonzero(np.asarray(intact.index["shard"]) == 2).tolist()
    before = {sample: contents(intact, sample) for sample in samples}
    for bit in some_bits(shard, FLIPS):
        with flipped(shard, bit):
            source = PreparedSource(with_audio, with_audio=True)
            for sample in samples:
                try:
                    assert contents(source, sample) == before[sample]
                except BrokenSample as error:
                    assert f"sample {sample} of 'asr' in {shard}" in str(error)
            found = lint_source(with_audio)
            assert str(shard) in " ".join([*found.problems, *found.broken.values()])


def contents(source: PreparedSource, sample: int) -> str:
    return repr(source.read(sample)) + repr([wave.tobytes() for wave in source.read_clips(sample)])


def test_plain_webdataset_never_sees_a_flipped_bit(source: Path) -> None:
    shard = source / PreparedSource(source).manifest.shards[0].name
    [member] = wds.WebDataset([str(shard)], shardshuffle=False, empty_check=False)
    block = bytearray(member["block"])
    for bit in np.random.default_rng(0).choice(8 * len(block), FLIPS, replace=False).tolist():
        block[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="block"):
            decode_block(bytes(block))
        block[bit // 8] ^= 1 << bit % 8
    older = b"VAPLBLK1" + bytes(block[8:12]) + bytes(4) + bytes(block[16:])
    assert repr(decode_block(older)) == repr(decode_block(bytes(block)))


@pytest.mark.parametrize("change", ["a shard less", "a shard more", "a shard twice", "other numbers"])
def test_a_manifest_of_other_shards_than_lie_there_is_refused(source: Path, change: str) -> None:
    """By what it says, where an older version has left no checksums."""
    path = source / "manifest.json"
    values = json.loads(path.read_text())
    match change:
        case "a shard less":
            values["shards"].pop()
        case "a shard more":
            shutil.copy(source / values["shards"][0]["name"], source / "more.tar")
            values["shards"].append(values["shards"][0] | {"name": "more.tar"})
        case "a shard twice":
            values["shards"][1] = values["shards"][0]
        case "other numbers":
            values["shards"][0]["samples"] += 1
            values["shards"][1]["samples"] -= 1
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="manifest.json"):
        PreparedSource(source)
    (source / CHECKSUMS).unlink()
    with pytest.raises(UserError, match=r"manifest\.json names \d shards with .* samples that lie otherwise"):
        PreparedSource(source)
    assert str(path) in " ".join(lint_source(source).problems)


def test_a_source_of_an_older_version_loads_with_a_line_that_says_how_to_add_checksums(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source / CHECKSUMS).unlink()
    assert len(PreparedSource(source)) == 120
    [line] = caplog.messages
    assert "without checksums" in line and f"vita_audio_pl.checksums folder={source} write=true" in line
    flip(source / "index.bin", 8 * 200)
    with pytest.raises(UserError, match="index.bin is damaged"):
        PreparedSource(source)


@pytest.mark.parametrize("numbers", [{"-1": "x"}, {"120": "x"}, {"5": "x", "100000": "x"}, {"1.5": "x"}, ["5"], "5", 5])
def test_a_quarantine_of_samples_that_are_not_there_is_refused(source: Path, numbers: object) -> None:
    path = source / "quarantine.json"
    path.write_text(json.dumps(numbers))
    with pytest.raises(UserError, match=f"{path} .*lint source=asr quarantine=true"):
        PreparedSource(source)
    assert str(path) in " ".join(lint_source(source).problems)
    path.write_text(json.dumps({"5": "of an older version"}))
    assert PreparedSource(source).quarantined == {5: "of an older version"}


def test_a_shard_cut_under_a_running_training_is_a_sentence(source: Path) -> None:
    prepared = PreparedSource(source)
    shard = source / prepared.manifest.shards[0].name
    assert prepared.read(0).id == "asr-0"
    os.truncate(shard, 2000)
    with pytest.raises(BrokenSample, match=f"sample 49 of 'asr' in {shard}: the file ends"):
        prepared.read(49)


def test_all_sources_together_keep_few_files_open(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "_most", 4)
    open_files.__dict__.pop("most", None)
    sources = [PreparedSource(corpus.shards / name) for name in ("asr", "tts", "text")]
    for source in sources:
        open_files.forget(source.folder)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(0, 80, 7):
        assert all(source.read(number).id == f"{source.name}-{number}" for source in sources)
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    monkeypatch.undo()
    open_files.__dict__.pop("most", None)


def test_a_process_without_file_handles_says_nothing_about_its_samples(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*arguments: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    source = PreparedSource(corpus.shards / "asr")
    monkeypatch.setattr("vita_audio_pl.storage.open_files.os.open", none_left)
    with pytest.raises(OSError, match="no file handle is left .*ulimit -n"):
        source.read(0)


def test_a_damaged_report_of_a_part_makes_that_part_anew(corpus: Corpus, tmp_path: Path) -> None:
    job = toy_job(corpus.root, tmp_path, "asr", corpus.tokenizer)
    before = prepare_source(job)
    part = job.reader.parts()[1]
    for text in (b"", b"{}", job.done_file(part).read_bytes().replace(b'"samples": 50', b'"samples": 51')):
        job.done_file(part).write_bytes(text)
        assert not is_finished(job.out, job.output_name(part))
        assert prepare_source(job) == before and is_finished(job.out, job.output_name(part))


def test_codes_that_do_not_fit_are_refused_before_they_wrap(corpus: Corpus) -> None:
    def stored(codes: list[int]) -> list[int]:
        packed = pack_sample(TokenizedSample("name", (Turn("assistant", (AudioCodes(np.array(codes)),)),)))
        return unpack_sample(packed).turns[0].segments[0].codes.tolist()  # type: ignore[union-attr]

    assert stored([0, 65_535]) == [0, 65_535]
    for codes in ([1, 65_536], [-1]):
        with pytest.raises(UserError, match=f"name: the code {codes[-1]} cannot be stored"):
            stored(codes)
    job = toy_job(corpus.root, corpus.shards, "asr", corpus.tokenizer)
    with pytest.raises(UserError, match="loudness has 65537 codes"):
        replace(job, codec={**job.codec, "codebook_size": 65_537})


def test_codes_of_another_type_or_build_never_share_a_shard(corpus: Corpus) -> None:
    class Moving:
        name, fingerprint, codes_per_second, codebook_size, build = "moving", "1", 12.5, 64, "a 1"

        def to(self, device: str, dtype: str) -> None: ...

    class Rebuilt(Moving):
        build = "a 2"

    class Still(Moving):
        to = property()  # hasattr says no

    job = toy_job(corpus.root, corpus.shards, "asr", corpus.tokenizer)
    facts = [
        preparation.codec_facts(codec, dtype, device)  # type: ignore[arg-type]
        for codec in (Moving(), Rebuilt(), Still())
        for dtype, device in (("float32", "cpu"), ("bfloat16", "cpu"), ("bfloat16", "cuda:1"), ("bfloat16", "cuda"))
    ]
    names = [replace(job, codec=codec).output_name(job.reader.parts()[0]) for codec in facts]
    assert len(set(names)) == 6 and names[8] == names[9] == names[10] == names[0]
    assert names[2] == names[3] and names[6] == names[7]  # whichever GPU


def test_sources_of_different_types_are_told(corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = toy_job(corpus.root, tmp_path, "tts", corpus.tokenizer)
    prepare_source(replace(job, codec={**job.codec, "dtype": "bfloat16"}), most_parts=1)
    assert len(open_sources([corpus.shards / "asr", tmp_path / "tts"])) == 2
    [line] = caplog.messages
    assert "'asr' in float32, 'tts' in bfloat16" in line


def test_local_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(preparation, "load_codec", lambda folder, device, dtype: device)
    codec = partial(preparation.worker_codec, Path("codec"), "cuda", "float32")
    taken = []
    for number in range(6):
        monkeypatch.setattr(executors, "_number", number)
        taken.append(codec())
    assert taken == ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0", "cuda:1"]
    assert preparation.worker_codec(Path("codec"), "cuda:2", "float32") == "cuda:2"


@pytest.mark.parametrize("name", ["index.bin", AUDIO_INDEX, ".tar", ".audio.tar"])
def test_a_file_that_is_cut_while_it_is_in_use_is_a_sentence_and_never_a_dead_process(
    with_audio: Path, name: str, tmp_path: Path
) -> None:
    shutil.copytree(with_audio, tmp_path / "asr")
    source = PreparedSource(tmp_path / "asr", with_audio=True)
    samples = range(len(source))
    before = [contents(source, sample) for sample in samples]
    shards = source.manifest.shards if name == ".tar" else source.manifest.audio_shards
    path = tmp_path / "asr" / (name if not name.startswith(".") else shards[0].name)
    whole = path.read_bytes()
    rule = Renderer(toy_tokenizer().vocabulary(N_CODES), toy_tokenizer(), RenderOptions(None)).length_rule

    def use() -> None:
        """Cuts the file shorter and shorter below a source that has been opened and read."""
        told = set()
        for size in (len(whole) - 1, len(whole) // 2, 70, 0):
            os.truncate(path, size)
            for sample in samples:
                try:
                    assert contents(source, sample) == before[sample]
                except BrokenSample as error:
                    told.add("broken")
                    assert path.name in str(error)
                except UserError as error:
                    told.add("cut")
                    assert f"{path} was cut while it was in use" in str(error)
            if name == "index.bin" and size <= len(whole) // 2:
                with pytest.raises(UserError, match="was cut while it was in use"):
                    source.index.measure(rule, continuous=False)
        assert told == {"broken" if name.endswith("tar") else "cut"}

    child = get_context("fork").Process(target=use)
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
