"""A result on disk: metrics and utterances under one checksum, so that changes and truncation are noticed."""

import json
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import is_sealed, sum_of_bytes, unsealed, write_sealed

_UTTERANCES = "utterances_digest"
_AGAIN = "rerun its evaluation, which writes the file again"


def write_figures(path: Path, figures: dict[str, Any], utterances: bytes) -> None:
    """Write `result.json` with the digest of its file of utterances."""
    write_sealed(path, figures | {_UTTERANCES: sum_of_bytes(utterances).to_json()})


def read_figures(path: Path) -> dict[str, Any]:
    """Contents of `result.json`; results of earlier versions have no checksum.

    Raises:
        UserError: it is missing, damaged, or was changed since it was written.
    """
    try:
        data = path.read_bytes()
        figures = unsealed(path, data) if is_sealed(data) else json.loads(data)
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no results ({path.name} is missing); evaluate first") from None
    except UserError as error:
        raise UserError(f"{error}; {_AGAIN}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); {_AGAIN}") from None
    if not isinstance(figures, dict):
        raise UserError(f"{path} is not a result; {_AGAIN}")
    return figures


def read_utterances(path: Path, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the utterances of a result.

    Raises:
        UserError: the file is missing, damaged, or not the one that the metrics were computed from.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {_AGAIN}") from None
    if figures.get(_UTTERANCES, found := sum_of_bytes(data).to_json()) != found:
        raise UserError(f"{path} is not what was written: it was damaged, cut or edited; {_AGAIN}")
    return read_rows(path, data)


def read_rows(path: Path, data: bytes | None = None, torn: bool = False) -> list[dict[str, Any]]:
    r"""The objects of a JSONL file; only `\n` ends a line, since texts may contain other line separators.

    Args:
        data: contents of the file, if it was read before.
        torn: skip truncated lines, which records of an evaluation may have.
    """
    rows = []
    for line in filter(None, (path.read_bytes() if data is None else data).split(b"\n")):
        try:
            row = json.loads(line)
        except ValueError as error:
            if not torn:
                raise UserError(f"{path} is damaged ({error}); {_AGAIN}") from None
            continue
        if "heard" in row:  # written by an earlier version
            row["transcript"] = row.pop("heard")
        rows.append(row)
    return rows
