"""Packages of a person's own, imported so that they register codecs and readers (`plugins=[my.package]`)."""

import importlib
import os
from collections.abc import Iterable

from vita_audio_pl.errors import UserError

_ENVIRONMENT = "VITA_AUDIO_PL_PLUGINS"


def load_plugins(names: Iterable[str]) -> None:
    """Import the packages here, and in the processes that this one starts as soon as they ask for a registered name.

    Raises:
        UserError: a package cannot be imported.
    """
    wanted = [*dict.fromkeys([*_inherited(), *names])]
    for name in wanted:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"plugins: '{name}' cannot be imported: {error}; install it, or set PYTHONPATH to its folder"
            ) from error
    os.environ[_ENVIRONMENT] = ",".join(wanted)


def load_inherited_plugins() -> None:
    """Import what the process that started this one was asked to import."""
    if _inherited():
        load_plugins(())


def _inherited() -> list[str]:
    return [name for name in os.environ.get(_ENVIRONMENT, "").split(",") if name]
