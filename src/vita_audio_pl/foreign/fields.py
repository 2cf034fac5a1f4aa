"""Configuration files of other projects: JSON, and YAML whose tags would call Python, both read as plain data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vita_audio_pl.errors import UserError

_LARGEST_FILE = 1 << 20  # bytes; real ones have a few thousand
_LARGEST_NUMBER = 10_000_000


class _Reference(str):
    """The text after `!ref`: the value of a top-level key, written `<key>`."""


class _DataLoader(yaml.SafeLoader):
    """SafeLoader that takes the value behind any tag and leaves the tag alone; aliases, which can swell, are refused."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here")
        return super().compose_node(parent, index)


def _plain(loader: _DataLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    text = loader.construct_scalar(node)
    return _Reference(text) if node.tag == "!ref" else text


_DataLoader.add_constructor(None, _plain)


def read_tagged_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping as data: `!new:`, `!name:` and `!apply:` are ignored, `!ref <key>` is looked up.

    Raises:
        UserError: the file is missing, too large, is not YAML, is no mapping, or refers to a key it does not have.
    """
    text = _read_text(path)
    try:
        values = yaml.load(text, Loader=_DataLoader)  # a SafeLoader: builds lists, dicts, strings and numbers only
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping at its top")
    return _References(values, path).followed()


class _References:
    """Puts values in the place of `!ref <key>`, each key once, so that neither loops nor doubling can grow."""

    def __init__(self, top: dict, path: str | Path):
        self._top, self._path = top, path
        self._done: dict[str, Any] = {}
        self._open: set[str] = set()

    def followed(self) -> dict[str, Any]:
        return {key: self._key(key) for key in self._top}

    def _key(self, key: str) -> Any:
        if key not in self._done:
            if key in self._open:
                raise UserError(f"{self._path}: the reference to '{key}' leads back to itself")
            self._open.add(key)
            self._done[key] = self._value(self._top[key])
        return self._done[key]

    def _value(self, value: Any) -> Any:
        if isinstance(value, _Reference):
            key = value.strip().removeprefix("<").removesuffix(">")
            if key not in self._top:
                raise UserError(f"{self._path}: '!ref {value}' refers to a key that the file does not have")
            return self._key(key)
        if isinstance(value, dict):
            return {key: self._value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item) for item in value]
        return value


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: the file is missing, too large, is not JSON, or is no object.
    """
    try:
        values = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object")
    return values


def _read_text(path: str | Path) -> str:
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{path} is too large to be a configuration ({path.stat().st_size:,} bytes)")
        return path.read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"{path}: there is no such file; download the whole checkpoint folder") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file") from None


class Fields:
    """Typed reading of a configuration mapping; every complaint names the file and the field."""

    def __init__(self, values: Mapping[str, Any], where: str):
        if not isinstance(values, Mapping):
            raise UserError(f"{where} must be a mapping, not {values!r}")
        self._values, self._where = values, where

    def section(self, name: str) -> "Fields":
        return Fields(self._get(name), f"{self._where}: {name}")

    def integer(self, name: str, *, least: int = 1, most: int = _LARGEST_NUMBER) -> int:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UserError(f"{self._where}: {name} is {value!r}; a whole number from {least} to {most} is wanted")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        values = self._get(name)
        if not isinstance(values, list) or not 1 <= len(values) <= 64:
            raise UserError(f"{self._where}: {name} is {values!r}; a list of whole numbers is wanted")
        entries = Fields(dict(enumerate(values)), f"{self._where}: {name}")
        return tuple(entries.integer(index) for index in range(len(values)))

    def tables(self, name: str) -> tuple[tuple[int, ...], ...]:
        """A list of lists of whole numbers."""
        rows = self._get(name)
        if not isinstance(rows, list) or not 1 <= len(rows) <= 64:
            raise UserError(f"{self._where}: {name} is {rows!r}; a list of lists of whole numbers is wanted")
        entries = Fields(dict(enumerate(rows)), f"{self._where}: {name}")
        return tuple(entries.integers(index) for index in range(len(rows)))

    def number(self, name: str, *, least: float = 0.0) -> float:
        value = self._get(name)
        try:
            # YAML 1.1 reads `1e-06` as text
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if isinstance(value, bool) or not least <= number < float("inf"):
            raise UserError(f"{self._where}: {name} is {value!r}; a number of at least {least} is wanted")
        return number

    def only(self, name: str, *supported: Any, default: Any = None) -> Any:
        """The field's value, which must be one of those supported; `default` where the field is absent."""
        value = self._values.get(name, default)
        if value not in supported:
            wanted = " or ".join(repr(choice) for choice in supported)
            raise UserError(f"{self._where}: {name} is {value!r}; only {wanted} is supported")
        return value

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def _get(self, name: str) -> Any:
        if name not in self._values:
            raise UserError(f"{self._where}: the field '{name}' is missing")
        return self._values[name]
