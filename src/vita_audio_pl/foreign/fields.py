"""Configuration files of other projects: JSON, and YAML whose tags would call Python, both read as plain data."""

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vita_audio_pl.errors import UserError, shown

_LARGEST_FILE = 1 << 20  # bytes; real ones have a few thousand
_LARGEST_NUMBER = 10_000_000


class _Reference(str):
    """The key in `!ref <key>`: refers to the value of a top-level key."""


class _DataLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """SafeLoader that ignores tags and keeps their values; aliases, which can expand without bound, are refused."""

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
    """Read a YAML mapping as data: `!new:`, `!name:` and `!apply:` are ignored, `!ref <key>` is resolved.

    Raises:
        UserError: the file is missing, too large, is not YAML, is no mapping, or refers to a key it does not have.
    """
    text = _read_text(path)
    try:
        values = yaml.load(text, Loader=_DataLoader)  # a SafeLoader: builds lists, dicts, strings and numbers only
    except Exception as error:  # what constructs `!!bool`, `!!timestamp` and so on raises nearly any type
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping at its top")
    try:
        return _References(values, path).followed()
    except RecursionError:
        raise UserError(
            f"{path} nests its values, or leads from reference to reference, too deeply to be read"
        ) from None


class _References:
    """Puts values in the place of `!ref <key>`, each key once, so that neither loops nor doubling can grow."""

    def __init__(self, top: dict[str, Any], path: str | Path):
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


def read_json(path: str | Path, *, largest: int = _LARGEST_FILE) -> dict[str, Any]:
    """Read a JSON object; NaN and infinity, which are not JSON, are refused.

    Args:
        largest: largest size of the file, bytes.

    Raises:
        UserError: the file is missing, too large, is not JSON, or is no object.
    """
    try:
        values = json.loads(_read_text(path, largest), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object")
    return values


def read_json_if_there(path: Path, *, largest: int = _LARGEST_FILE) -> dict[str, Any]:
    """Like `read_json`; an empty mapping if there is no such file."""
    return read_json(path, largest=largest) if path.exists() else {}


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def require_file(path: Path, remedy: str) -> int:
    """Size of the file at `path` in bytes; refuses devices, pipes and folders.

    Args:
        remedy: what to do if it is missing.

    Raises:
        UserError: there is no such file, or it may not be looked at.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):  # a name with a NUL in it is a ValueError
        raise UserError(f"{path} is missing; {remedy}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is not a regular file; {remedy}")
    return found.st_size


def _read_text(path: str | Path, largest: int = _LARGEST_FILE) -> str:
    path = Path(path)
    size = require_file(path, "download the whole checkpoint folder")
    if size > largest:
        raise UserError(f"{path} is too large to be a configuration ({size:,} bytes; at most {largest:,} are read)")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file") from None


class Fields:
    """Typed access to a configuration mapping; every error names the file and the field."""

    def __init__(self, values: Mapping[str, Any], where: str):
        if not isinstance(values, Mapping):
            raise UserError(f"{where} must be a mapping, not {shown(values)}")
        self._values, self._where = values, where

    def section(self, name: str) -> "Fields":
        return Fields(self._get(name), f"{self._where}: {name}")

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A mapping, as it stands."""
        value = self._get(name)
        if not isinstance(value, Mapping):
            raise UserError(f"{self._where}: {name} is {shown(value)}; expected a mapping")
        return value

    def integer(self, name: str, *, least: int = 1, most: int = _LARGEST_NUMBER, default: int | None = None) -> int:
        """An integer; `default` if the field is absent or null, if there is a default."""
        value = self._get(name) if default is None or self.has(name) else default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UserError(f"{self._where}: {name} is {shown(value)}; expected a whole number from {least} to {most}")
        return value

    def integers(self, name: str, *, least: int = 1, most: int = _LARGEST_NUMBER) -> tuple[int, ...]:
        values = self._get(name)
        if not isinstance(values, list) or not 1 <= len(values) <= 64:
            raise UserError(f"{self._where}: {name} is {shown(values)}; expected a list of whole numbers")
        entries = Fields({str(index): value for index, value in enumerate(values)}, f"{self._where}: {name}")
        return tuple(entries.integer(str(index), least=least, most=most) for index in range(len(values)))

    def tables(self, name: str, *, most: int = _LARGEST_NUMBER) -> tuple[tuple[int, ...], ...]:
        """A list of lists of integers."""
        rows = self._get(name)
        if not isinstance(rows, list) or not 1 <= len(rows) <= 64:
            raise UserError(f"{self._where}: {name} is {shown(rows)}; expected a list of lists of whole numbers")
        entries = Fields({str(index): row for index, row in enumerate(rows)}, f"{self._where}: {name}")
        return tuple(entries.integers(str(index), most=most) for index in range(len(rows)))

    def number(self, name: str, *, least: float = 0.0, most: float = 1e9, default: float | None = None) -> float:
        """A finite number; `default` if the field is absent or null, if there is a default."""
        value = self._get(name) if default is None or self.has(name) else default
        try:
            # YAML 1.1 reads `1e-06` as text
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(value, bool) or not least <= number <= most:
            raise UserError(f"{self._where}: {name} is {shown(value)}; expected a number from {least} to {most}")
        return number

    def text(self, name: str, *, default: str | None = None) -> str:
        """A text; `default` if the field is absent or null, if there is a default."""
        value = self._get(name) if default is None or self.has(name) else default
        if not isinstance(value, str):
            raise UserError(f"{self._where}: {name} is {shown(value)}; expected a string")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false; `default` if the field is absent or null."""
        value = self._get(name) if self.has(name) else default
        if not isinstance(value, bool):
            raise UserError(f"{self._where}: {name} is {shown(value)}; expected true or false")
        return value

    def only(self, name: str, *supported: Any, default: Any = None) -> Any:
        """The field's value, which must be a supported one; `default` if the field is absent."""
        value = self._values.get(name, default)
        if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in supported):
            wanted = " or ".join(shown(choice) for choice in supported)
            raise UserError(f"{self._where}: {name} is {shown(value)}; only {wanted} is supported")
        return value

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def _get(self, name: str) -> Any:
        if name not in self._values:
            raise UserError(f"{self._where}: the field '{name}' is missing")
        return self._values[name]
