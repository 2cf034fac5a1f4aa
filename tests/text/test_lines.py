"""Text files come as other tools write them: every row once, nothing cut where only Python sees an end."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio_pl.errors import UserError
from vita_audio_pl.text import lines
from vita_audio_pl.text.lines import Line, line_blocks, load_json, read_lines, split_fields

ROW = st.text(st.characters(exclude_characters="\n\r\ufeff", exclude_categories=["Cs"])) | st.sampled_from(
    ["red\u2028bird", "a\x0cb", "a\x85b", "a\x1cb\x0bc", "\u00a0", "\u3000x"]
)


@given(rows=st.lists(ROW), end=st.sampled_from(["\n", "\r\n", "\r\r\n"]), mark=st.booleans(), last=st.booleans())
def test_rows_are_read_once_and_whole_whatever_ends_them(tmp_path_factory, rows, end, mark, last):
    path = tmp_path_factory.getbasetemp() / "rows.txt"
    text = end.join(rows) + (end if last and rows else "")
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
    expected = rows if last or not rows or rows[-1] else rows[:-1]
    if mark and not text:
        expected = [""]
    assert list(read_lines(path)) == [Line(number, row) for number, row in enumerate(expected, 1)]


@given(fields=st.lists(ROW.filter(lambda text: text and not set(text) & {" ", "\t"}), min_size=1))
def test_only_blanks_and_tabs_part_fields(fields):
    assert split_fields(" \t".join(fields) + "\r\n") == fields
    first, *rest = split_fields(" " + "\t ".join(fields), 2)
    assert [first, *rest] == [fields[0], *(["\t ".join(fields[1:])] if fields[1:] else [])]


def test_a_line_that_cannot_be_read_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 10)
    (tmp_path / "t").write_bytes(
        "one\n你好\n".encode() + "你好".encode("gbk") + b"\n" + b"x" * 35 + b"\n0123456789\nend"
    )
    read = list(read_lines(tmp_path / "t"))
    assert [(line.number, line.text) for line in read if not line.problem] == [
        (1, "one"), (2, "你好"), (5, "0123456789"), (6, "end"),
    ]  # fmt: skip
    assert "not UTF-8 (byte 1 is 0xc4)" in read[2].problem and "longer than" in read[3].problem


@pytest.mark.parametrize(("start", "said"), [("text".encode("utf-16"), "UTF-16"), (b"\x1f\x8b\x08", "gzip")])
def test_another_kind_of_file_is_one_sentence(tmp_path, start, said):
    (tmp_path / "t").write_bytes(start)
    with pytest.raises(UserError, match=said):
        list(read_lines(tmp_path / "t"))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        list(read_lines(tmp_path / "none"))


def test_blocks_of_lines_are_the_file_and_change_with_their_lines_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_PIECE", 7)
    path = tmp_path / "t"
    content = b"one\ntwo and more\r\n\nfour\r\r\n1234567\n12345678\nend of the file"
    path.write_bytes(content)
    for size in (1, 2, 3, 100):
        blocks = list(line_blocks(path, size))
        assert sum(block.lines for block in blocks) == 7 and [block.first for block in blocks] == list(
            range(1, 8, size)
        )
        for block, after in zip(blocks, [*blocks[1:], None], strict=True):
            part = content[block.offset : after.offset if after else None]
            assert block.digest == hashlib.sha256(part).hexdigest() and part.count(b"\n") == block.lines - (
                after is None
            )


def test_json_with_a_key_twice_or_without_end_is_refused():
    assert load_json('{"a": {"b": [1, NaN]}, "b": 2}')["b"] == 2
    with pytest.raises(ValueError, match="the key 'b' comes twice"):
        load_json('[{"a": {"b": 1, "b": 2}}]')
    for deep in ("[" * 100_000, '{"a":' * 100_000, "9" * 100_000):
        with pytest.raises(ValueError):
            load_json(deep)
