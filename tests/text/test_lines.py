"""Text files come as other tools write them: every row once, nothing cut where only Python sees an end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio_pl.errors import UserError
from vita_audio_pl.text import lines
from vita_audio_pl.text.lines import Line, read_lines, split_fields

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
