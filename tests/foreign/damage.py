"""Damages a file as an attacker or a bad disk would: values of JSON and YAML, bytes, tables of tensors, what stands at a name."""

import json
import os
import random
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VALUES: list[Any] = [
    *(-1, 0, 1, 2, 3, 7, 255, 1000, 65_537, 10**6, 10**9, 10**18, 2**63, 10**400, -(10**12)),
    *(0.0, 0.5, -0.5, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"), True, False, None),
    *(
        "",
        "x",
        "1e9",
        "nan",
        "../x",
        "/etc/passwd",
        "\0",
        "\ud800",
        "é" * 40,
        "a" * 5000,
        "F64",
        "I64",
        "BOOL",
        "F8_E4M3",
    ),
    *([], {}, [0], [1] * 70, [1] * 3000, [[]], [[1, 2], [3]], {"a": 1}, {"": {}}, [None], ["x"], [10**9, 10**9]),
]
LINES = [
    "*a",
    "&a [*a]",
    "!!bool x",
    "!!timestamp y",
    "!ref <x>",
    "!new:os.system [x]",
    "? {a: b}",
    "- " * 300,
    "'",
    "\t",
]


@contextmanager
def damaged(folder: Path, seed: str) -> Iterator[str]:
    """Damages one file below `folder` in a way that follows from `seed`; says which, and undoes it afterwards."""
    draw = random.Random(seed)
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    before = path.read_bytes()
    try:
        if draw.random() < 0.1:
            told = _other_than_a_file(path, draw)
        else:
            told, after = _changed(path.suffix, before, draw)
            path.write_bytes(after)
        yield f"{path.relative_to(folder)}: {told}"
    finally:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        path.write_bytes(before)


def _other_than_a_file(path: Path, draw: random.Random) -> str:
    path.unlink()
    kind = draw.choice(["nothing", "an empty file", "a folder", "a pipe", "an endless device", "a link to itself"])
    match kind:
        case "an empty file":
            path.touch()
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "an endless device":
            path.symlink_to("/dev/zero")
        case "a link to itself":
            path.symlink_to(path.name)
    return kind


def _changed(suffix: str, before: bytes, draw: random.Random) -> tuple[str, bytes]:
    if draw.random() < 0.15:
        return "bytes", _bytes(before, draw)
    if suffix == ".json":
        values = json.loads(before)
        told = _value(values, draw)
        return told, json.dumps(values).encode()
    if suffix == ".safetensors" and draw.random() < 0.7:
        size = struct.unpack("<Q", before[:8])[0]
        table = json.loads(before[8 : 8 + size])
        told = _value(table, draw)
        header = json.dumps(table).encode()
        length = draw.choice([len(header)] * 8 + [0, len(header) + 1, 10**8, 2**63])
        return f"table, {told}", struct.pack("<Q", length) + header + before[8 + size :]
    if suffix in (".yaml", ".mvn"):
        text = before.decode()
        numbers = list(re.finditer(r"[\w.+-]+", text))
        place = draw.choice(numbers)
        value = draw.choice([*map(str, VALUES), *LINES]).encode("utf-8", "replace").decode()
        return f"{place.group()} -> {value[:40]!r}", (text[: place.start()] + value + text[place.end() :]).encode()
    return "bytes", _bytes(before, draw)


def _value(values: Any, draw: random.Random) -> str:
    """Changes, removes, repeats or adds one value anywhere in `values`."""
    holder, path = values, ""
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return "nothing"
        key = draw.choice(keys)
        path += f"/{str(key)[:40]}"
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.25:
            break
        holder = inner
    old, kind = holder[key], draw.random()
    if kind < 0.1:
        del holder[key]
        return f"{path} removed"
    if kind < 0.15 and isinstance(holder, dict):
        holder[draw.choice(["x", "rope_type", "num_heads", "\0", ""])] = draw.choice(VALUES)
        return f"beside {path} something more"
    if kind < 0.45 and isinstance(old, int) and not isinstance(old, bool):
        holder[key] = draw.choice([old + 1, old - 1, 2 * old, old // 2, -old, old * 10**6, float(old), str(old), [old]])
    else:
        holder[key] = draw.choice(VALUES)
    return f"{path} {str(old)[:40]} -> {str(holder[key])[:40]!r}"


def _bytes(before: bytes, draw: random.Random) -> bytes:
    if not before:
        return b"\0"
    changed = bytearray(before)
    place = draw.randrange(min(len(changed), draw.choice([64, 4096, len(changed)])))
    match draw.randrange(6):
        case 0:
            changed[place] ^= 1 << draw.randrange(8)
        case 1:
            del changed[place:]
        case 2:
            changed[place:place] = draw.randbytes(draw.choice([1, 8, 1000]))
        case 3:
            changed[place : place + 64] = bytes(len(changed[place : place + 64]))
        case 4:
            changed[place : place + 8] = b"\xff" * 8
        case 5:
            del changed[place : place + draw.choice([1, 100])]
    return bytes(changed)
