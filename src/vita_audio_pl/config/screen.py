"""Consoles that show names, texts and labels as they are: `[/x]` in one is no markup, and `:smile:` no picture."""

import re
import sys

from rich.console import Console


def screen(width: int = 150) -> Console:
    """Standard output; width: columns where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False)


def messages() -> Console:
    """Standard error, for progress and what goes beside a result."""
    return Console(stderr=True, markup=False, emoji=False)


def markdown_text(text: object) -> str:
    """A stranger's text in a line of Markdown, such as a cell of a table: neither markup, nor HTML, nor a link."""
    plain = re.sub(r"&(?=#|\w+;)", "&amp;", " ".join(str(text).split()))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", plain).replace("|", "\\|").replace("](", "]\\(")
