"""Readers of what a publisher's folders hold: lists of transcripts, long recordings, TextGrids."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.reading import everything
from vita_audio_pl.data.readers import AudioFile, RawSample, make_reader
from vita_audio_pl.data.readers.recordings import Interval, overlaps, read_textgrid
from vita_audio_pl.errors import UserError

LINES: dict[str, Any] = {
    "kind": "lines",
    "files": ["a/list.txt"],
    "line": r"(?P<id>(?P<speaker>\w)\d+) (?P<text>.*)",
    "audio": "{folder}/{speaker}/{id}.wav",
}
SHORT_GRID = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n3\n<exists>\n1\n"IntervalTier"\n"鸟"\n0\n3\n2\n'
SHORT_GRID += '0\n1.25\n"says ""hi"" 5 times"\n1.25\n3\n""\n'


def test_a_changed_line_or_pattern_makes_its_parts_anew(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/list.txt").write_text("".join(f"b{n} word\n" for n in range(9)))
    reader = make_reader(tmp_path, "asr", {**LINES, "lines_per_part": 3}, "test")
    before = [part.identity for part in reader.parts()]
    (tmp_path / "a/list.txt").write_text("".join(f"b{n} {'word' if n != 4 else 'bird'}\n" for n in range(9)))
    after = [part.identity for part in reader.parts()]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]
    other = make_reader(tmp_path, "asr", {**LINES, "lines_per_part": 3, "skip": "b7"}, "test")
    assert not set(after) & {part.identity for part in other.parts()}
    sample = everything(other)[4]
    assert isinstance(sample, RawSample) and sample.audios == (AudioFile(tmp_path / "a/b/b4.wav"),)
    assert len(everything(other)) == 8


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"line": "(?P<id>"}, "not a regular expression"),
        ({"line": "(?P<id>.*)", "audio": "{id}"}, "needs the group text"),
        ({"audio": "{name}.wav"}, "names {name}"),
        ({"audio": "{id.__class__}.wav"}, "braces hold the name of a column"),
        ({"transcript": "{id}.txt", "transcript_line": "x"}, "'transcript_line' needs the group text"),
        ({"files": ["b/list.txt", "c/*.txt"]}, "no file matches b/list.txt, c/"),
    ],
)
def test_patterns_that_cannot_serve_are_sentences(changed: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/list.txt").write_text("b1 word\n")
    with pytest.raises(UserError, match=told):
        make_reader(tmp_path, "asr", {**LINES, **changed}, "test").parts()


def test_paths_out_of_the_corpus_leave_their_lines_out(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("../../etc/passwd x\n/etc/passwd x\nhttp://a/b.wav x\n")
    options = {"kind": "lines", "files": ["list.txt"], "line": r"(?P<id>\S+) (?P<text>x)", "audio": "{id}"}
    found = everything(make_reader(tmp_path, "asr", options, "test"))
    assert [getattr(sample, "reason", "") for sample in found] == ["no audio", "no audio", "audio elsewhere"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_textgrids_are_read_in_praats_short_form_and_as_utf_16(encoding: str, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "a.TextGrid").write_bytes((mark + SHORT_GRID).encode(encoding))
    assert list(read_textgrid(tmp_path / "a.TextGrid")) == [
        Interval("鸟", 1, 0.0, 1.25, 'says "hi" 5 times'),
        Interval("鸟", 2, 1.25, 3.0, ""),
    ]


def test_a_textgrid_whose_numbers_are_not_finite_is_damaged_from_there(tmp_path: Path) -> None:
    (tmp_path / "a.TextGrid").write_text(SHORT_GRID.replace("\n2\n", "\n1e999\n"))
    with pytest.raises(UserError, match="damaged from .* on: a number should stand there"):
        list(read_textgrid(tmp_path / "a.TextGrid"))


def test_overlap_counts_the_speech_of_others_alone() -> None:
    said = [("a", 0, 4, "x"), ("a", 1, 2, "x"), ("b", 3, 5, "x"), ("c", 0, 1, "<sil>"), ("c", 3, 4, "x")]
    intervals = [Interval(tier, 1, start, end, text) for tier, start, end, text in said]
    assert overlaps(intervals) == pytest.approx([0.5, 0.0, 1.0, 1.0, 1.0])


def test_audio_tags_are_text_where_a_corpus_has_no_audio(tmp_path: Path) -> None:
    row = '{"conversations": [{"from": "human", "value": "<audio>"}, {"from": "gpt", "value": "a tag"}]}'
    (tmp_path / "a.jsonl").write_text(row)
    options: dict[str, Any] = {"kind": "table", "files": ["*.jsonl"], "columns": {"messages": "conversations"}}
    [sample] = everything(make_reader(tmp_path, "text", options, "test"))
    assert isinstance(sample, RawSample) and sample.conversation.messages[0].content == "<audio>"
