"""Recipes: a corpus described in ten lines of YAML, `data_recipes/sources/*.yaml`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.config.fields import did_you_mean
from vita_audio_pl.data.readers import Reader, Transcriber, make_reader
from vita_audio_pl.data.readers.base import finds
from vita_audio_pl.data.readers.filters import NONE, Filters
from vita_audio_pl.data.readers.jsonl import PREFERENCE
from vita_audio_pl.data.readers.sides import SideReader
from vita_audio_pl.data.speaking.reader import Speak
from vita_audio_pl.data.yaml_file import named_yaml, read_yaml
from vita_audio_pl.errors import UserError, shown
from vita_audio_pl.storage.places import Place

TASKS = ("asr", "tts", "sqa", "text", "long_text", PREFERENCE)
TRAIN, DEV = "train", "dev"
MAX_SKIPPED = 0.05
_LONGEST_TEXT = 1000  # characters


@dataclass(frozen=True)
class SourceRecipe:
    """One corpus.

    Attributes:
        name: file name of the recipe, and of the folder of its shards.
        task: one of `TASKS`.
        description: one line.
        languages: ISO 639 codes.
        licence: licence of the corpus.
        home: where to get it.
        layout: layout on disk after download, relative to `root`.
        reader: `kind` of the reader and its options.
        splits: reader options that differ per split; `train` always exists.
        otherwise: other layouts in which the corpus is published, each with `layout`, `reader` and the same `splits`:
            the first one whose files exist is read.
        held_out: share of the corpus for the split `dev`, if it is published without one; 0 trains on everything.
        hours: approximate hours of audio; None for text.
        samples: approximate number of conversations.
        checked: the release and the files that the recipe was read against, and what could not be confirmed.
        filters: which samples to use, and normalisation of their text (`readers/filters.py`).
        speak: which messages without audio are synthesised, if any (`speaking/reader.py`).
        max_seconds: audio longer than this is left out with its sample.
        max_skipped: share of samples that may be left out before preparing it ends with an error (of more than 20).
    """

    name: str
    task: str
    description: str
    languages: tuple[str, ...]
    licence: str
    home: str
    layout: str
    reader: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    otherwise: Sequence[Mapping[str, Any]] = ()
    held_out: float = 0.0
    hours: float | None = None
    samples: int | None = None
    checked: str = ""
    filters: Filters = NONE
    speak: Speak | None = None
    max_seconds: float = 30.0
    max_skipped: float = MAX_SKIPPED

    def folder(self, split: str = TRAIN) -> str:
        """Folder name of a split's shards: the source's, with `.split` unless it is the training split."""
        return self.name if split == TRAIN else f"{self.name}.{split}"

    def open(self, root: Place, split: str = TRAIN, transcriber: Transcriber | None = None) -> Reader:
        """The reader of a split of the corpus in `root`; `transcriber` for recordings without transcripts.

        Raises:
            UserError: there is no such split or no such folder, or the reader has no such option.
        """
        if split not in self.all_splits:
            raise UserError(f"the source '{self.name}' has no split '{split}'; it has {', '.join(self.all_splits)}")
        if not root.is_dir():
            raise UserError(
                f"{root} is not a folder: get '{self.name}' from {self.home} and say where it is with root=DIR; "
                f"expected there: {self.layout}"
            )
        options = self._found_layout(root, split)
        reader = make_reader(root, self.task, options, f"the recipe of '{self.name}'", self.filters, transcriber)
        return SideReader(reader, root, self.held_out, split == DEV) if self.held_out else reader

    def absent(self, root: Place, split: str = TRAIN) -> list[str]:
        """The patterns of files that find nothing in `root`, as after a partial download."""
        return [pattern for pattern, found in _found(self._found_layout(root, split), root) if not found]

    def is_there(self, root: Place, split: str = TRAIN) -> bool:
        """Whether a file of the split is in `root`; also of readers that find their files themselves."""
        found = [there for _, there in _found(self._found_layout(root, split), root)]
        return not found or any(found)

    def _found_layout(self, root: Place, split: str) -> Mapping[str, Any]:
        """Options of the reader for the first layout whose files are there; those of the first one where none are."""
        ways = [{**way["reader"], **way.get("splits", {}).get(split, {})} for way in self._layouts]
        if len(ways) == 1:
            return ways[0]
        return next((way for way in ways if any(there for _, there in _found(way, root))), ways[0])

    @property
    def _layouts(self) -> Sequence[Mapping[str, Any]]:
        return ({"reader": self.reader, "splits": self.splits}, *self.otherwise)

    @property
    def all_splits(self) -> tuple[str, ...]:
        named = (split for split in self.splits if split != TRAIN)
        return (TRAIN, *named, *((DEV,) if self.held_out else ()))


def _found(options: Mapping[str, Any], root: Place) -> Iterator[tuple[str, bool]]:
    """Globs of the files that a reader with these options begins with, and whether each finds one in `root`."""
    if options["kind"] == "kaldi" and "folder" in options:  # a path, which may lead anywhere, and no glob
        yield f"{options['folder']}/wav.scp", (root / str(options["folder"]) / "wav.scp").is_file()
        return
    patterns = options.get("files", ())
    for pattern in patterns if isinstance(patterns, list) else ():
        if isinstance(pattern, str):  # what is none, the reader refuses by name
            yield pattern, finds(root, pattern)


def load_recipe(name: str, folder: Path | None = None) -> SourceRecipe:
    """Load a recipe: a file name without `.yaml` in the sources' folder, or a path that ends in `.yaml`.

    Raises:
        UserError: there is no such recipe, or it has something that a recipe does not.
    """
    path = named_yaml("source", name, folder or asset_dir("data_recipes") / "sources")
    return parse_recipe(path.stem, read_yaml(path), str(path))


def parse_recipe(name: str, value: Any, where: str) -> SourceRecipe:
    """Validate a recipe's contents.

    Raises:
        UserError: a key is missing or unknown, or has the wrong type.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold keys and values, such as 'task: asr'")
    known = {f.name: f for f in fields(SourceRecipe) if f.name != "name"}
    unknown = sorted(map(str, set(value) - set(known)))
    if unknown:
        raise UserError(
            f"{where}: unknown key '{unknown[0]:.100}'; a recipe has {', '.join(known)}{did_you_mean(unknown[0][:100], known)}"
        )
    required = ("task", "description", "languages", "licence", "home", "layout", "reader")
    missing = [key for key in required if key not in value]
    if missing:
        raise UserError(f"{where}: the key '{missing[0]}' is missing; a recipe needs {', '.join(required)}")
    kinds: dict[str, tuple[type, ...]] = {
        "languages": (list,),
        "reader": (dict,),
        "splits": (dict,),
        "filters": (dict,),
        "speak": (list, dict),
        "otherwise": (list,),
        "hours": (int, float, type(None)),
        "samples": (int, type(None)),
        "held_out": (int, float),
        "max_seconds": (int, float),
        "max_skipped": (int, float),
    }
    for key, content in value.items():
        if not isinstance(content, kinds.get(key, (str,))) or isinstance(content, bool):
            wanted = " or ".join(dict.fromkeys(_IN_WORDS[kind] for kind in kinds.get(key, (str,))))
            raise UserError(f"{where}: '{key}' is {shown(content)}, not {wanted}")
        if isinstance(content, str) and len(content) > _LONGEST_TEXT:
            raise UserError(f"{where}: '{key}' has {len(content)} characters; {_LONGEST_TEXT} are allowed")
    if value["task"] not in TASKS:
        raise UserError(f"{where}: the task '{value['task']:.100}' is not one of {', '.join(TASKS)}")
    for key, most in {"hours": 1e9, "samples": 1e15, "max_seconds": 1e6, "max_skipped": 1, "held_out": 0.5}.items():
        number = value.get(key)
        if number is not None and not 0 <= number <= most:
            raise UserError(f"{where}: '{key}' is {shown(number)}; it must lie between 0 and {most:g}")
    if "speak" in value and value["task"] != "sqa":
        raise UserError(
            f"{where}: 'speak' makes questions or answers sound, so it is for the task sqa, not {value['task']}"
        )
    ways = value.get("otherwise", [])
    if not all(
        isinstance(way, dict) and {"layout", "reader"} <= set(way) <= {"layout", "reader", "splits"} for way in ways
    ):
        raise UserError(f"{where}: each of 'otherwise' has a 'layout', a 'reader' and perhaps 'splits'")
    for way in (value, *ways):
        _check_reading(way, where)
        if set(way.get("splits", {})) != set(value.get("splits", {})):
            raise UserError(f"{where}: every layout must have the same splits")
    if value.get("held_out") and DEV in value.get("splits", {}):
        raise UserError(
            f"{where}: 'held_out' makes the split '{DEV}', which 'splits' has already; leave one of them out"
        )
    languages, filters = tuple(map(str, value["languages"])), Filters.of(value.get("filters", {}), where)
    speak = Speak.of(value["speak"], where) if "speak" in value else None
    return SourceRecipe(name=name, **{**value, "languages": languages, "filters": filters, "speak": speak})


_IN_WORDS = {str: "text", list: "a list", dict: "a mapping", int: "a number", float: "a number", type(None): "null"}


def _check_reading(way: Mapping[str, Any], where: str) -> None:
    """Validate the reader and splits of a recipe."""
    reader, splits = way["reader"], way.get("splits", {})
    if not isinstance(reader, dict) or "kind" not in reader:
        raise UserError(f"{where}: 'reader' needs a 'kind', as in 'reader: {{kind: jsonl, files: [train.jsonl]}}'")
    if not isinstance(splits, dict) or not all(isinstance(options, dict) for options in splits.values()):
        raise UserError(f"{where}: each of 'splits' takes options of the reader, as in 'dev: {{files: [dev.jsonl]}}'")
    if not all(isinstance(split, str) and re.fullmatch(r"[\w-]+", split) for split in splits):
        raise UserError(f"{where}: each of 'splits' is named by letters, digits, _ and -, as in 'dev: {{...}}'")
