"""The page on using the package from Python runs as it is printed, from the world to a trainer of one's own."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "from-python.md"


def test_the_page_runs(place):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (place.folder / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    printed = place.run("page.py")
    assert "stage 'align' is done" in printed
    assert (place.folder / "losses.png").stat().st_size > 1000
