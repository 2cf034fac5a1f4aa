import bz2
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.data.reading import bad, contents, good
from vita_audio_pl.data.readers import (
    AudioBytes,
    AudioFile,
    LeftOut,
    RawSample,
    Unreadable,
    archives,
    make_reader,
    table_files,
)
from vita_audio_pl.data.readers.base import file_identities, read_part
from vita_audio_pl.data.readers.lhotse import LhotseReader, _write_utterances
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import load_audio


def wav_bytes(seconds: float = 0.5, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(int(seconds * rate)) / 20) / 2, rate, format="WAV")
    return file.getvalue()


def test_our_jsonl_names_every_line_that_is_none(tmp_path: Path) -> None:
    fine = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    lines = [
        json.dumps(fine),
        "not json",
        json.dumps({"messages": []}),
        "",
        json.dumps({"messages": [{"role": "robot", "content": "x"}]}),
        json.dumps({"messages": [{"role": "user", "content": "<|audio|><|audio|>"}], "audios": ["a.wav"]}),
    ]
    (tmp_path / "x.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n" + json.dumps(fine).encode())
    reader = make_reader(tmp_path, "text", {"kind": "jsonl", "files": ["*.jsonl"], "lines_per_part": 3}, "test")
    assert len(reader.parts()) == 3
    assert [sample.conversation.id.rsplit(":")[-1] for sample in good(reader)] == ["1", "8"]
    assert [problem.where.rsplit(":")[-1] for problem in bad(reader)] == ["2", "3", "5", "6", "7"]
    assert all(problem.where in problem.problem for problem in bad(reader))


def test_a_changed_line_changes_only_its_part(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"line": {n}}}\n' for n in range(9)))
    reader = make_reader(tmp_path, "text", {"kind": "jsonl", "lines_per_part": 3}, "test")
    before = [part.identity for part in reader.parts()]
    path.write_text(path.read_text().replace('{"line": 4}', '{"line": 44}'))
    after = [part.identity for part in reader.parts()]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_a_large_file_is_known_by_its_ends_and_by_pieces_between(tmp_path: Path) -> None:
    path, data = tmp_path / "a/large.tar", bytearray(np.random.default_rng(0).bytes(3 * 2**20))
    path.parent.mkdir()
    path.write_bytes(data)
    [before] = file_identities([path], tmp_path)
    os.utime(path, ns=(1, 1))
    assert file_identities([path], tmp_path) == [before] and before.startswith(f"a/large.tar {len(data)} ")
    for place in (0, 5, len(data) // 7 * 3 + 100, len(data) - 1):
        changed = data.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert file_identities([path], tmp_path) != [before]
    path.write_bytes(data + b"x")
    assert file_identities([path], tmp_path) != [before] != file_identities([path], path.parent)


def write_kaldi(folder: Path) -> None:
    (folder / "wav").mkdir(parents=True)
    (folder / "wav/r1.wav").write_bytes(wav_bytes(2.0))
    (folder / "wav.scp").write_text("r1 wav/r1.wav\nr2 sox x.flac -t wav - |\n")
    (folder / "segments").write_text("u1 r1 0.0 0.5\nu2 r1 0.5 1.25\nu3 r2 0 1\nu4 r9 0 1\nu5 r1 x y\nu6 r1 0 1\n")
    (folder / "text").write_text("u1 HELLO  THERE\nu2 SO LONG\nu3 never\nu4 never\nu5 never\n")
    (folder / "utt2spk").write_text("u1 anna\nu2 anna\nu3 bob\n")


def test_kaldi_directories_with_segments(tmp_path: Path) -> None:
    write_kaldi(tmp_path)
    reader = make_reader(tmp_path, "asr", {"kind": "kaldi", "lower": True, "utterances_per_part": 4}, "test")
    samples = good(reader)
    assert contents(samples[0]) == [("user", "Convert the speech to text.\n<|audio|>"), ("assistant", "hello there")]
    assert samples[1].audios == (AudioFile(tmp_path / "wav/r1.wav", 0.5, 0.75),)
    assert len(load_audio(samples[1].audios[0], 16_000, 30)) == 12_000
    assert [problem.reason for problem in bad(reader)] == [
        "command in wav.scp",
        "no recording",
        "not a segment",
        "no transcript",
    ]


def test_commands_in_kaldi_tables_are_never_run(tmp_path: Path) -> None:
    write_kaldi(tmp_path)
    (tmp_path / "segments").unlink()
    (tmp_path / "wav.scp").write_text(f"u1 touch {tmp_path}/owned |\n")
    reader = make_reader(tmp_path, "asr", {"kind": "kaldi"}, "test")
    assert "commands are not run" in bad(reader)[0].problem
    assert not (tmp_path / "owned").exists()


def test_speaker_prompts_come_from_the_same_speaker_and_lone_utterances_are_named(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text("".join(f"u{n} u{n}.wav\n" for n in range(6)))
    (tmp_path / "text").write_text("".join(f"u{n} words {n}\n" for n in range(6)))
    (tmp_path / "utt2spk").write_text("u0 anna\nu1 bob\nu2 anna\nu3 anna\nu4 eve\n")
    reader = make_reader(tmp_path, "tts", {"kind": "kaldi", "speaker_prompt": True}, "test")
    pairs = {s.conversation.id: s.audios[0].path.stem for s in good(reader)}
    assert pairs == {"u0": "u2", "u2": "u0", "u3": "u2"}
    assert contents(good(reader)[0]) == [
        ("system", "Your Voice: <|audio|>\n"),
        ("user", "Convert the text to speech.\nwords 0"),
        ("assistant", "<|audio|>"),
    ]
    reasons = {problem.where: problem.reason for problem in bad(reader)}
    assert reasons == {"u1": "only utterance of its speaker", "u4": "only utterance of its speaker", "u5": "no speaker"}


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_webdataset_tars_are_read_in_memory_and_unsafe_names_refused(tmp_path: Path) -> None:
    text = json.dumps({"text": "hello", "speaker": "anna"}).encode()
    members = [
        ("a/one.wav", wav_bytes()),
        ("a/one.json", text),
        ("../../escape.wav", wav_bytes()),
        ("/somewhere/abs.wav", wav_bytes()),
        ("two.wav", wav_bytes()),
        ("three.json", text),
        ("four.wav", b"not audio"),
        ("four.json", text),
        ("five.wav", wav_bytes()),
        ("five.json", b"{"),
    ]
    write_tar(tmp_path / "x.tar", members)
    reader = make_reader(tmp_path, "asr", {"kind": "webdataset", "text": "json"}, "test")
    samples = good(reader)
    assert [s.conversation.id for s in samples] == ["x/a/one", "x/four"]
    assert isinstance(samples[0].audios[0], AudioBytes) and len(load_audio(samples[0].audios[0], 16_000, 30)) == 8000
    assert [problem.reason for problem in bad(reader)] == [
        "unsafe member name",
        "unsafe member name",
        "not text",
        "no transcript",
        "no audio",
    ]


def test_a_truncated_tar_gives_what_it_has_and_is_named(tmp_path: Path) -> None:
    members = [(f"{n}.{e}", wav_bytes() if e == "wav" else b"hello") for n in range(5) for e in ("wav", "txt")]
    write_tar(tmp_path / "x.tar", members)
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: len(whole) // 2])
    reader = make_reader(tmp_path, "asr", {"kind": "webdataset"}, "test")
    assert [s.conversation.id for s in good(reader)] == ["x/0", "x/1"]
    assert [(p.reason, p.where) for p in bad(reader)] == [("damaged archive", str(tmp_path / "x.tar"))]


def test_an_archive_that_unpacks_for_days_is_left(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "_MOST_UNPACKED", 4)
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 1 << 20)
    head = tarfile.TarInfo("a.wav")
    head.size = 40 << 30
    (tmp_path / "x.tar").write_bytes(bz2.compress(head.tobuf(tarfile.GNU_FORMAT) + bytes(16 << 20)))
    with pytest.raises(archives.ArchiveError, match="it unpacks to more than 4 times its size"):
        list(archives.members(tmp_path / "x.tar"))


def test_parquet_that_unpacks_to_more_than_memory_holds_is_refused_or_read_in_few_rows(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(table_files, "_LARGE_GROUP", 1 << 20)
    pq.write_table(
        pa.table({"text": ["a" * (8 << 20)]}), tmp_path / "page.parquet", compression="zstd", use_dictionary=False
    )
    with pytest.raises(UserError, match="row group 0 unpacks from .* to 8,388,.* bytes, which is no corpus"):
        list(table_files._parquet_rows(tmp_path / "page.parquet", 0, 1, ["text"]))
    said_once = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["a" * (1 << 18)]))
    pq.write_table(pa.table({"text": said_once, "id": range(100)}), tmp_path / "dictionary.parquet", compression="zstd")
    pq.write_table(pa.table({"id": range(100)}), tmp_path / "small.parquet")
    for name, expected in (("dictionary", 3), ("small", 64)):
        with table_files._parquet(tmp_path / f"{name}.parquet") as file:
            assert table_files._rows_at_a_time(file, tmp_path / f"{name}.parquet", 0) == expected
    rows = table_files._parquet_rows(tmp_path / "dictionary.parquet", 0, 100, ["text", "id"])
    assert [row["id"] for _, row in rows] == list(range(100))


def test_a_column_whose_figures_are_damaged_is_a_sentence_and_not_the_end_of_the_process() -> None:
    """Found by mutation: pyarrow aborts where it is asked for such a column's metadata."""
    with pytest.raises(UserError, match="cannot be read as parquet"):
        list(
            table_files._parquet_rows(
                Path(__file__).with_name("damaged_histogram.parquet"), 0, 4, ["id", "file", "text", "speaker"]
            )
        )


def test_parquet_of_recordings(tmp_path: Path) -> None:
    audio = [
        {"bytes": wav_bytes(), "path": None},
        {"bytes": None, "path": "clips/b.wav"},
        {"bytes": None, "path": "../c"},
    ]
    table = pa.table({"audio": audio, "sentence": ["one", "two", "three"], "spk": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "train-0.parquet", row_group_size=2)
    columns = {"audio": "audio", "text": "sentence", "speaker": "spk"}
    reader = make_reader(tmp_path, "tts", {"kind": "table", "columns": columns, "rows_per_part": 2}, "test")
    assert len(reader.parts()) == 2
    groups = {rows: [part.where["count"] for part in replace(reader, rows_per_part=rows).parts()] for rows in (1, 3)}
    assert groups == {1: [2, 1], 3: [3]}  # no row group is read twice
    samples = good(reader)
    assert contents(samples[1]) == [("user", "Convert the text to speech.\ntwo"), ("assistant", "<|audio|>")]
    assert isinstance(samples[0].audios[0], AudioBytes) and samples[1].audios == (AudioFile(tmp_path / "clips/b.wav"),)
    assert "leads out of the corpus" in bad(reader)[0].problem


@pytest.mark.parametrize(
    "chat",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        [{"human": "a", "assistant": "b"}],
        ["a", "b"],
    ],
)
def test_chats_in_every_usual_spelling(tmp_path: Path, chat: list) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"talk": chat}) + "\n[1]\n" + json.dumps({"other": 1}) + "\n")
    options = {"kind": "table", "files": ["*.jsonl"], "columns": {"messages": "talk"}}
    reader = make_reader(tmp_path, "text", options, "test")
    assert contents(good(reader)[0]) == [("user", "a"), ("assistant", "b")]
    assert len(bad(reader)) == 2


def test_questions_with_spoken_answers(tmp_path: Path) -> None:
    row = {"split": "s", "index": 7, "q": {"bytes": wav_bytes(), "path": None}, "a": "forty two"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    columns = {"user_audio": "q", "assistant": "a", "assistant_audio": "answers/{split}_{index}.wav"}
    sample = good(make_reader(tmp_path, "sqa", {"kind": "table", "columns": columns}, "test"))[0]
    assert contents(sample) == [("user", "<|audio|>"), ("assistant", "forty two\n<|audio|>")]
    assert sample.audios[1] == AudioFile(tmp_path / "answers/s_7.wav")


def test_a_json_list_of_questions(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([{"c": "context", "q": "why", "a": "because"}, {"q": "no answer"}]))
    options = {"kind": "table", "files": ["x.json"], "columns": {"user": "c+q", "assistant": "a"}}
    reader = make_reader(tmp_path, "text", options, "test")
    assert contents(good(reader)[0]) == [("user", "context\nwhy"), ("assistant", "because")]
    assert len(bad(reader)) == 1


def test_lhotse_recipes_read_a_corpus_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path = Path("corpora/LibriSpeech")
    folder = tmp_path / "train-clean-100/19/198"
    folder.mkdir(parents=True)
    soundfile.write(folder / "19-198-0000.flac", np.zeros(8000, np.float32), 16_000)
    soundfile.write(folder / "19-198-0001.flac", np.zeros(16_000, np.float32), 16_000)
    (folder / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n")
    options = {"kind": "lhotse", "corpus": "librispeech", "manifests": ["train-clean-100"], "lower": True}
    reader = make_reader(tmp_path, "asr", options, "test")
    samples = good(reader)
    assert sorted(contents(s)[1][1] for s in samples) == ["northanger abbey", "this little work"]
    assert samples[0].audios[0].path.is_file() and samples[0].audios[0].seconds is None
    moved = tmp_path.rename("moved")
    assert all(s.audios[0].path.is_file() for s in good(make_reader(moved, "asr", options, "test")))
    moved.rename(tmp_path)
    with pytest.raises(UserError, match="no manifest 'other'"):
        make_reader(tmp_path, "asr", {**options, "manifests": ["other"]}, "test").parts()
    with pytest.raises(UserError, match="no recipe for 'nonsense'"):
        make_reader(tmp_path, "asr", {**options, "corpus": "nonsense"}, "test").parts()


def two_voices(path: Path) -> None:
    """A telephone call: 220 Hz on one channel, 330 Hz on the other."""
    seconds = np.arange(16_000) / 16_000
    both = np.stack([np.sin(2 * np.pi * hz * seconds) / 2 for hz in (220, 330)], axis=1)
    soundfile.write(path, both, 16_000)


def pitches(samples: list[RawSample]) -> dict[str, set[int]]:
    """Which tones are heard in the audio of each sample."""
    found = {}
    for sample in samples:
        wave = load_audio(sample.audios[-1], 16_000, 30)
        spectrum = np.abs(np.fft.rfft(wave, 16_000))
        found[sample.conversation.id] = set(np.flatnonzero(spectrum > spectrum.max() / 2).tolist())
    return found


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        (None, {"u1": {220, 330}, "u2": {330}}),
        (0, {"u1": {220}, "u2": {220}}),
        ("each", {"u1/channel0": {220}, "u1/channel1": {330}, "u2": {330}}),
    ],
)
def test_a_recipe_or_the_corpus_says_which_channel_is_heard(tmp_path: Path, channel: object, expected: dict) -> None:
    two_voices(tmp_path / "call.wav")
    (tmp_path / "wav.scp").write_text("call call.wav\n")
    (tmp_path / "segments").write_text("u1 call 0 1\nu2 call 0 1 B\n")
    (tmp_path / "text").write_text("u1 HELLO\nu2 THERE\n")
    samples = good(make_reader(tmp_path, "asr", {"kind": "kaldi", "channel": channel}, "test"))
    assert pitches(samples) == expected
    write_tar(tmp_path / "x.tar", [("u1.wav", (tmp_path / "call.wav").read_bytes()), ("u1.txt", b"HELLO")])
    from_tar = pitches(good(make_reader(tmp_path, "asr", {"kind": "webdataset", "channel": channel}, "test")))
    assert from_tar == {f"x/{name}": heard for name, heard in expected.items() if name != "u2"}


def test_a_supervision_says_which_channel_it_is_about(tmp_path: Path) -> None:
    two_voices(tmp_path / "call.wav")
    source = SimpleNamespace(type="file", source=str(tmp_path / "call.wav"), channels=[0, 1])
    each = [SimpleNamespace(type="file", source=str(tmp_path / f"{n}.wav"), channels=[n]) for n in (0, 1)]
    recordings = [
        SimpleNamespace(id="call", duration=1.0, sources=[source]),
        SimpleNamespace(id="array", duration=1.0, sources=each),
    ]
    said = [
        ("a", "call", 0),
        ("b", "call", 1),
        ("c", "call", [0, 1]),
        ("d", "array", 1),
        ("e", "array", [0, 1]),
        ("f", "x", 0),
    ]
    supervisions = [
        SimpleNamespace(
            id=id,
            recording_id=recording,
            start=0.0,
            duration=1.0,
            text="hi",
            speaker=None,
            channel=channel,
            language="en",
            gender=None,
            custom=None,
        )
        for id, recording, channel in said
    ]
    manifests = {"train": {"recordings": recordings, "supervisions": supervisions}}
    _write_utterances(tmp_path / "all.jsonl", manifests, (), tmp_path)
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "all.jsonl").read_text().splitlines())}
    assert [(row["path"], row["channel"]) for row in rows.values()] == [
        ("call.wav", 0), ("call.wav", 1), ("call.wav", None), ("1.wav", None), ("", None), ("", None),
    ]  # fmt: skip
    reader = LhotseReader(tmp_path, "calls")
    assert pitches([RawSample(u.conversation, u.audios) for u in reader._rules.samples(reader._utterance(rows[n]) for n in "abc")]) == {
        "a": {220}, "b": {330}, "c": {220, 330},
    }  # fmt: skip
    for name, problem in (("e", "in several files"), ("f", "a missing recording")):
        with pytest.raises(LeftOut, match=f"its audio is {problem}"):
            reader._utterance(rows[name])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("kaldi", {"lower": True}),
        ("kaldi", {"channel": 1}),
        ("table", {"channel": 1}),
        ("webdataset", {"channel": "each"}),
        ("kaldi", {"join": True}),
        ("webdataset", {"lower": True}),
        ("webdataset", {"text": "json"}),
        ("webdataset", {"audio": ["flac"]}),
        ("table", {"join": True}),
        ("table", {"columns": {"audio": "audio", "text": "other"}}),
    ],
)
def test_shards_are_made_anew_where_a_recipe_reads_otherwise(tmp_path: Path, kind: str, change: dict) -> None:
    (tmp_path / "wav.scp").write_text("a a.wav\n")
    (tmp_path / "text").write_text("a HELLO THERE\n")
    (tmp_path / "x.jsonl").write_text('{"audio": "a.wav", "text": "HELLO"}\n')
    (tmp_path / "x.tar").write_bytes(bytes(1024))
    options = {"kind": kind} | (
        {"files": ["x.jsonl"], "columns": {"audio": "audio", "text": "text"}} if kind == "table" else {}
    )
    first, again, other = (
        make_reader(tmp_path, "asr", o, "test").parts()[0].identity for o in (options, options, options | change)
    )
    assert first == again != other


def test_patterns_cannot_lead_out_of_the_corpus(tmp_path: Path) -> None:
    for pattern in ("../*.jsonl", "/etc/*.jsonl"):
        with pytest.raises(UserError, match="leads out"):
            make_reader(tmp_path, "text", {"kind": "jsonl", "files": [pattern]}, "test").parts()


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"kind": "magic"}, "reader 'magic'; there are jsonl"),
        ({"kind": "jsonl", "fles": ["x"]}, "no option 'fles'"),
        ({"kind": "jsonl", "root": "x"}, "no option 'root'"),
        ({"kind": "lhotse"}, "lacks an option"),
        ({"kind": "table", "columns": {"txt": "x"}}, "no column 'txt'"),
        ({"kind": "table", "columns": {"text": "x", "audio": "{x.__class__}"}}, "braces hold the name of a column"),
        ({"kind": "table", "columns": {"text": "x", "audio": "{x:999999999}"}}, "braces hold the name of a column"),
        ({"kind": "table", "columns": {"text": "x"}, "numbers": ["y"]}, "'numbers' names 'y'"),
        ({"kind": "table", "columns": {"messages": "x"}, "channel": "each"}, "for recordings with transcripts"),
        ({"kind": "table", "columns": ["text"]}, "columns'=.*must be names and what they stand for"),
        ({"kind": "kaldi", "channel": "left"}, "channel'='left'; give a number, or 'each'"),
        ({"kind": "kaldi", "channel": -1}, "channel'=-1; it must be 0 or more"),
        ({"kind": "jsonl", "channel": "each"}, "channel'='each'; it must be a whole number or null"),
        ({"kind": "jsonl", "lines_per_part": 0}, "lines_per_part'=0; it must be 1 or more"),
        ({"kind": "jsonl", "files": 3}, "files'=3; it must be a list"),
        ({"kind": ["jsonl"]}, "there are jsonl"),
        ({"kind": "webdataset", "lower": 1}, "lower'=1; it must be true or false"),
    ],
)
def test_readers_refuse_what_they_do_not_know(tmp_path: Path, options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_reader(tmp_path, "text", options, "test")


def test_tars_and_the_table_beside_them_are_joined_and_what_is_in_neither_is_told(tmp_path: Path) -> None:
    rows = ["path\tsentence", "a.mp3\tone", "b\ttwo", "c.wav\tthree", "c.wav\tagain", "\tnameless", "short row"]
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n")
    members = [(f"x/{name}.wav", wav_bytes()) for name in ("a", "b", "c", "unknown")]
    write_tar(tmp_path / "train_0.tar", [*members, ("x/notes.txt", b"hm"), ("../a.wav", wav_bytes())])
    write_tar(tmp_path / "train_1.tar", members[:1])
    write_tar(tmp_path / "dev_0.tar", members[:1])
    options = {
        "kind": "archives", "files": ["*.tar"], "place": r"(?P<split>\w+)_\d+\.tar", "table": "{split}.tsv",
        "columns": {"audio": "path", "text": "sentence"},
    }  # fmt: skip
    reader = make_reader(tmp_path, "asr", options, "test")
    assert [part.name for part in reader.parts()] == ["dev_0.tar", "train_0.tar", "train_1.tar"]
    found = [sample for part in reader.parts() for sample in read_part(reader, part)]
    assert [contents(s)[1][1] for s in found if isinstance(s, RawSample)] == ["one", "two", "one"]
    assert [problem.reason for problem in found if isinstance(problem, Unreadable)] == [
        "damaged file",  # no table for dev_0.tar
        "no audio",
        "not a sample",
        "repeated key",
        "no transcript",
        "unsafe member name",
    ]
    before = [part.identity for part in reader.parts()]
    (tmp_path / "train.tsv").write_text("\n".join(rows[:3]) + "\n")
    changed = [one != other.identity for one, other in zip(before, reader.parts(), strict=True)]
    assert changed == [False, True, True]
    for change, sentence in (
        ({"table": "{other}.tsv"}, "not a group of 'place'"),
        ({"place": "("}, "not a regular expression"),
        ({"columns": {"audio": "path"}}, "needs the columns 'audio' and 'text'"),
        ({"columns": {"words": "path"}}, "no column 'words'"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_reader(tmp_path, "asr", options | change, "test")
