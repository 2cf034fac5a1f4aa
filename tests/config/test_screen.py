"""Names and texts of strangers are shown as they are: they neither break a command nor become markup."""

import re
from pathlib import Path

import pytest

import vita_audio_pl
from vita_audio_pl.config.screen import markdown_text, messages, screen
from vita_audio_pl.reporting.tables import Cell, Table, markdown, terminal

ODD = "[/bold]a[red]b :smile: [link=file:///etc]"
SOURCES = Path(vita_audio_pl.__file__).parent


def test_what_looks_like_markup_is_shown(capsys):
    table = Table(("model", "WER"), ((Cell(ODD), Cell("1 %", 1.0, ODD)),))
    screen().print(terminal(table, ODD))
    screen().print(f"page {ODD}")
    messages().print(ODD)
    printed = capsys.readouterr()
    assert printed.out.count(ODD) == 4 and ODD in printed.err


def test_every_console_is_one_that_shows_names_as_they_are():
    for path in SOURCES.rglob("*.py"):
        text = path.read_text()
        assert path.name == "screen.py" or not re.search(r"(?<!\w)Console\(", text), path
        assert all("markup=False" in made for made in re.findall(r"TextColumn\(.*?\)", text)), path


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "a | b\n| c", "[click](javascript:alert(1))", "a &lt;b> &#60;b>"]
)
def test_markdown_of_a_strangers_text_is_one_cell_without_html_or_links(hostile):
    shown = markdown_text(hostile)
    assert not re.search(r"<\w|\n|\]\(|(?<!\\)\||&(?!amp;|lt;)", shown)
    lines = markdown(Table(("name", "value"), ((Cell(hostile), Cell("1")),))).splitlines()
    assert len(lines) == 3 and shown in lines[2]
