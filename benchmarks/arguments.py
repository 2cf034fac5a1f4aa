"""What the scripts here have in common: arguments that are counts, and mistakes that are told in a sentence."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vita_audio_pl.errors import UserError


def count(text: str) -> int:
    """A whole number of at least 1, as argparse's `type`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return number


@contextmanager
def mistakes_told() -> Iterator[None]:
    """A `UserError` ends the script with its sentence and status, Ctrl-C with 130; nothing is kept of what it measured."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.status) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
