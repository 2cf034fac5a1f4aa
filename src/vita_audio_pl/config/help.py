"""What `--help` and `--help-all` print: usage, the settings that people change first, and where the rest is."""

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import MISSING, OmegaConf

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.config.component import TARGET, find_class
from vita_audio_pl.config.fields import Described, Rules, described, rules_of

SHORT, ALL = ("--help", "-h"), "--help-all"


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for help."""
    return any(argument in (*SHORT, ALL) for argument in arguments)


def print_help(config_name: str, schema: type, arguments: Sequence[str]) -> None:
    """Print the help of a command; values are those of the choices on the command line."""
    width = min(shutil.get_terminal_size((120, 24)).columns, 140)
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
        config = compose(config_name, overrides, return_hydra_config=True)
    print(str(OmegaConf.select(config, "hydra.help.header")).rstrip())
    settings = [each for each in _flat(schema, config) if not each.name.endswith(".name")]  # names follow from choices
    own = schema.__dict__.get("__annotations__", {})
    settings.sort(key=lambda each: each.name.split(".")[0] not in own)  # inherited ones after the command's own
    everything = ALL in arguments
    shown = settings if everything else [setting for setting in settings if setting.rules.common]
    groups = groups_of(config_name)
    if groups:
        print("\nChoices (group=option):")
        for group, options in groups.items():
            listed = f"  {group}: {', '.join(options)}"
            print(_wrapped(f"  {group}: ", ", ".join(options), width) if everything else _cut(listed, width))
    print(
        f"\n{'Settings' if everything or len(shown) == len(settings) else 'Settings that people change first'} (name=value):"
    )
    for setting in shown:
        print(_line(setting, _value(config, setting), width, whole=everything))
    more = (
        f"--help-all: all {len(settings)} settings, in full"
        if len(shown) < len(settings)
        else "--hydra-help: Hydra's own"
    )
    print(f"\n{more}. --cfg job: the composed values.")


def _flat(schema: type, config: Any) -> Iterator[Described]:
    """Every setting of the schema, those of the chosen components included."""
    for each in described(schema):
        node: Any = OmegaConf.select(config, each.name) if each.type == "Any" else None
        if OmegaConf.is_dict(node) and TARGET in node:
            rules = {field.name: rules_of(field) for field in _fields(str(node[TARGET]))}
            yield Described(f"{each.name}.{TARGET}", "str", MISSING, each.rules)
            yield from (
                Described(f"{each.name}.{key}", "", MISSING, rules.get(str(key), Rules()))
                for key in node
                if key != TARGET
            )
        else:
            yield each


def _fields(path: str) -> Sequence["dataclasses.Field[Any]"]:
    kind = find_class(path, path)
    return dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()


def groups_of(config_name: str) -> dict[str, list[str]]:
    """The groups that a command chooses from, with their options; those of files that its own file includes, too."""
    groups: dict[str, list[str]] = {}
    defaults = yaml.safe_load((asset_dir("conf") / f"{config_name}.yaml").read_text(encoding="utf-8")).get(
        "defaults", []
    )
    for entry in defaults:
        if isinstance(entry, str):
            if (asset_dir("conf") / f"{entry}.yaml").is_file():
                groups |= groups_of(entry)
            continue
        for name in (str(key).split()[-1] for key in entry):
            folders = [asset_dir("conf") / name]
            if name == "experiment":
                folders = [asset_dir("experiments"), Path("experiments")]
            options = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})
            if options and name not in _NUMBERS:
                groups[name] = options
    return groups


_NUMBERS = ("numbers",)
"""Groups whose option follows from other choices."""


def _value(config: Any, setting: Described) -> str:
    """The composed value, as it would be given."""
    try:
        value = OmegaConf.select(config, setting.name, default=setting.default)
    except Exception:  # an interpolation that only a full command line can resolve
        value = setting.default
    if value is None:
        return "null"
    if value == MISSING:
        return "..."
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return (
        re.sub(r"\s+", "", str(plain))
        if isinstance(plain, (list, dict))
        else str(plain).lower()
        if isinstance(plain, bool)
        else str(plain)
    )


def _line(setting: Described, value: str, width: int, *, whole: bool) -> str:
    """A setting with its meaning, wrapped; in the short help one line where its first clause fits on it."""
    rules = setting.rules
    meaning = rules.meaning
    if rules.choices and not all(choice in meaning for choice in rules.choices if choice):
        meaning += f" ({', '.join(choice for choice in rules.choices if choice)})"
    column = 45 if width >= 120 else 29
    label = f"  {setting.name}={value}".ljust(column - 2) + "  "
    if not whole and len(label + meaning) > width:
        # the shorter clauses come first in every meaning: what null means, lists and asides are left to --help-all
        for mark in (" (", "; ", ": ", ", "):
            if len(label + meaning) > width:
                meaning = meaning.partition(mark)[0]
        if len(label + meaning) > width:
            return _cut(label + meaning, width)
    return _wrapped(label, meaning, width, column)


def _cut(line: str, width: int) -> str:
    """`line`, or its first words and three dots where it does not fit."""
    return line if len(line) <= width else f"{line[: width - 4].rpartition(' ')[0]} ..."


def _wrapped(label: str, text: str, width: int, indent: int | None = None) -> str:
    if not text:
        return label.rstrip()
    return textwrap.fill(
        text,
        width,
        initial_indent=label,
        subsequent_indent=" " * (indent or len(label)),
        break_long_words=False,
        break_on_hyphens=False,
    )
