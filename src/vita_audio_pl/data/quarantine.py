"""Broken samples of a prepared source: `quarantine.json` beside its shards; they are never planned again."""

import json
from collections.abc import Mapping
from pathlib import Path

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import unsealed, write_sealed

QUARANTINE = "quarantine.json"
_FORMAT = 2  # before it, the file held only the samples and was not sealed


def write_quarantine(folder: Path, broken: Mapping[int, str]) -> None:
    """Record the broken samples of a source, and why they are broken."""
    named = {str(sample): broken[sample] for sample in sorted(broken)}
    write_sealed(folder / QUARANTINE, {"format": _FORMAT, "samples": named})


def read_quarantine(folder: Path, samples: int) -> dict[int, str]:
    """The broken samples of a source, and why they are broken.

    Args:
        samples: number of samples of the source.

    Raises:
        UserError: the file is damaged or names samples that do not exist.
    """
    path = folder / QUARANTINE
    again = (
        f"delete it, and run python -m vita_audio_pl.data lint source={folder.name} quarantine=true to write it again"
    )
    try:
        data = path.read_bytes()
        values = json.loads(data)
        if any(not key.isdigit() for key in values):
            values = unsealed(path, data)
            if values["format"] != _FORMAT:
                raise UserError(f"{path} has format {values['format']}, this version reads {_FORMAT}")
            values = values["samples"]
        found = {int(sample): str(reason) for sample, reason in values.items()}
    except FileNotFoundError:
        return {}
    except UserError as error:
        raise UserError(f"{error}; {again}") from error
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); {again}") from error
    outside = [sample for sample in found if not 0 <= sample < samples]
    if outside:
        raise UserError(f"{path} names the sample {outside[0]}, but the source has {samples} samples; {again}")
    return found
