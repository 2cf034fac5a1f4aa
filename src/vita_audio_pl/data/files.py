"""Files that appear whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def partial_name(path: Path) -> Path:
    """Where `path` is written until it is complete: a hidden neighbour that names the writing process."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` aside, flushes it to the disk and renames it to `path`."""
    partial = partial_name(path)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode())
