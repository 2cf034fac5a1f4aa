"""`metrics.csv`: a line for each logged step, read as far as it is whole."""

import csv
from pathlib import Path

STEP = "step"


def read_metrics(path: Path) -> tuple[dict[int, dict[str, str]], int]:
    """Figures by step, as written and without empty ones; and how many lines were left out.

    A power failure or a full disk leaves lines that are cut or full of NUL: numbers that may have lost digits are worse
    than none. No file is an empty one.
    """
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return {}, 0
    *lines, cut = text.split("\n")
    header = _fields(lines[0]) if lines else []
    if header[:1] != [STEP]:
        return {}, len(lines) + bool(cut)
    rows: dict[int, dict[str, str]] = {}
    damaged = int(bool(cut))
    for line in lines[1:]:
        fields = _fields(line)
        row = {name: value for name, value in zip(header, fields, strict=False) if value}
        if len(fields) == len(header) and all(map(_is_number, row.values())) and row.get(STEP, "").isdecimal():
            rows[int(row.pop(STEP))] = row
        else:
            damaged += 1
    return rows, damaged


def _fields(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
