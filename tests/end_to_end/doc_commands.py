"""The commands that the documentation shows."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PREFIX = "python -m vita_audio_pl."


def commands_of(page: Path) -> list[str]:
    """Commands of a page's code blocks, continued lines joined, prompts, comments and remarks cut off."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]
    lines = [line.strip().removeprefix("$ ") for line in lines]
    return [re.split(r"\s{2,}|\s#", line)[0] for line in lines if line.startswith(PREFIX)]


def write_yaml_of(page: str, folder: Path, *names: str | None) -> None:
    """Write the YAML blocks of a page, in order, to the files that the page says they are; None: a block is a piece of one."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for name, block in zip(names, re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL), strict=True):
        if name is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block, encoding="utf-8")


def documented() -> list[tuple[str, str]]:
    """Page and command of everything in `docs/`."""
    return [(page.stem, command) for page in sorted((ROOT / "docs").glob("*.md")) for command in commands_of(page)]
