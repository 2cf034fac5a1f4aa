"""Every place that the map of the code names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vita_audio_pl"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "map.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and "`" in line
]


def test_every_place_exists():
    missing = []
    for question, files, names in ROWS:
        texts = []
        for file in re.findall(r"`([^`]+)`", files):
            path = (PACKAGE / file).resolve()
            if not path.is_file():
                missing.append(f"{question} {file}")
                continue
            texts.append(path.read_text(encoding="utf-8"))
        for name in re.findall(r"`([\w.]+)`", names.partition("(")[0]):
            last = name.rpartition(".")[2]
            defined = re.compile(rf"^\s*(?:def|class)\s+{last}\b|^{last}\b.*=", re.M)
            if not any(defined.search(text) for text in texts):
                missing.append(f"{question} {name}")
    assert not missing
    assert len(ROWS) >= 16
