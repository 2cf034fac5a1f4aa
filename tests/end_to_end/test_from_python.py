"""The page on using the package from Python runs as it is printed, from the world to a trainer of one's own."""

import re
import shutil
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "from-python.md"


def test_the_page_runs(smoke_demo, tmp_path):
    # the world is there already; making it is what the demo's tests show
    shutil.copytree(smoke_demo.folder / "data", tmp_path / "data")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    place = type(smoke_demo)(tmp_path)
    printed = place.run("page.py")
    assert "stage 'align' is done" in printed
    assert (tmp_path / "losses.png").stat().st_size > 1000
