"""`python tests/data/miniatures DIR` writes every corpus in small, to look at the layouts: DIR/SOURCE, LAYOUT/..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from miniatures import MINIATURES  # noqa: E402

for miniature in MINIATURES:
    root = Path(sys.argv[1]) / f"{miniature.source}, {miniature.name}"
    root.mkdir(parents=True)
    miniature.make(root)
    print(root)
