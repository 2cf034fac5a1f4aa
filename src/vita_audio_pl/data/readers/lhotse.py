"""Corpora that lhotse can read: its recipes prepare manifests, which this reader uses (extra `corpora`)."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vita_audio_pl.data.readers.base import AudioFile, LeftOut, Part, RawSample, Stamp, Unreadable, attempt, stamp_of
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceOptions
from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.storage.lease import hold
from vita_audio_pl.storage.places import Place


@dataclass(frozen=True)
class LhotseReader(UtteranceOptions):
    """A corpus by the name of its lhotse recipe.

    Attributes:
        root: the corpus in its published layout.
        corpus: `librispeech` for `lhotse.recipes.prepare_librispeech`, and so on.
        task, speaker_prompt, lower, join, channel, filters: see `UtteranceOptions`; supervisions give the channels.
        manifests: names of the manifests to read, such as `train-clean-100`; with languages, `en/train`.
        settings: further arguments of the recipe, such as `languages` or `dataset_parts`.
        utterances_per_part: utterances per task.
    """

    root: Place
    corpus: str
    manifests: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    utterances_per_part: int = 2000

    @property
    def _utterances(self) -> list[dict[str, Any]]:
        """All utterances, from `.vita_audio_pl/<corpus>.<hash>.jsonl` in the corpus, which is written the first time."""
        if not isinstance(self.root, Path):
            raise UserError(f"'{self.corpus}' is read by lhotse, which takes folders alone: copy {self.root} to one")
        wanted = json.dumps([self.corpus, self.manifests, self.settings, 4], default=list)
        cache = self.root / ".vita_audio_pl"
        path = cache / f"{self.corpus}.{hashlib.sha256(wanted.encode()).hexdigest()[:12]}.jsonl"
        if not path.is_file():
            with hold(cache, "manifests", f"making the manifests of '{self.corpus}'", wait=True):
                if not path.is_file():
                    root = self.root.resolve()  # lhotse's manifests contain the root that it was given
                    prepared = _prepared(self.corpus, root, cache, self.settings or {})
                    _write_utterances(path, prepared, self.manifests, root)
        return _read_rows(path, stamp_of(path))

    def parts(self) -> list[Part]:
        rows = self._utterances
        parts = []
        for first in range(0, len(rows), self.utterances_per_part):
            chosen = rows[first : first + self.utterances_per_part]
            content = json.dumps([chosen, self._rules.identity])
            identity = hashlib.sha256(content.encode()).hexdigest()
            name, where = f"{self.corpus}:{chosen[0]['id']}", {"first": first, "count": len(chosen)}
            parts.append(Part(name, identity, where, content=f"{name} {len(chosen)}"))
        return parts

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        first = int(part.where["first"])
        rows = self._utterances[first : first + int(part.where["count"])]
        yield from self._rules.samples(attempt(row["id"], self._utterance, row) for row in rows)

    def _utterance(self, row: Mapping[str, Any]) -> Utterance:
        if row["kind"] != "file":
            raise LeftOut(
                "audio is not a file", f"its audio is {row['kind']}, not a file; nothing is fetched, joined or run here"
            )
        audio = AudioFile(self.root / row["path"], row["start"], row["seconds"], row["channel"])
        return Utterance(row["id"], audio, row["text"], row["speaker"], row["facts"])


@lru_cache(maxsize=1)  # each part is read independently
def _read_rows(path: Path, stamp: Stamp | None) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _prepared(corpus: str, root: Path, cache: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        from lhotse import recipes
    except ImportError as error:
        raise UserError(f"reading '{corpus}' needs lhotse: pip install 'vita-audio-pl[corpora]'") from error
    recipe = getattr(recipes, f"prepare_{corpus}", None)
    if recipe is None:
        raise UserError(f"lhotse has no recipe for '{corpus}'; `lhotse prepare --help` lists those it has")
    known = inspect.signature(recipe).parameters
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise UserError(f"lhotse's recipe for '{corpus}' has no setting '{unknown[0]}'; it has {', '.join(known)}")
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    try:
        return dict(recipe(root, output_dir=cache, **arguments))
    except Exception as error:  # lhotse's recipes raise any exception for unexpected files
        if is_machine_fault(error):
            raise
        raise UserError(
            f"lhotse's recipe for '{corpus}' finds fault with {root}: {error!r}; the corpus must lie there as published"
        ) from error


def _write_utterances(path: Path, prepared: Mapping[str, Any], manifests: tuple[str, ...], root: Path) -> None:
    """One line per supervision of the requested manifests; paths relative to `root`, so that the corpus can be moved."""
    found = dict(_manifests(prepared))
    missing = [name for name in manifests if name not in found]
    if missing:
        raise UserError(f"the corpus has no manifest '{missing[0]}'; it has {', '.join(found)}")
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        for name in manifests or found:
            recordings = {recording.id: recording for recording in found[name]["recordings"]}
            for supervision in found[name]["supervisions"]:
                recording = recordings.get(supervision.recording_id)
                kind, place, channel = _source(recording, supervision.channel)
                whole = recording is not None and supervision.start == 0 and supervision.duration >= recording.duration
                row = {
                    "id": supervision.id,
                    "kind": kind,
                    "path": _below(root, Path(place)) if kind == "file" else "",
                    "channel": channel,
                    "start": supervision.start,
                    "seconds": None if whole else supervision.duration,
                    "text": supervision.text,
                    "speaker": supervision.speaker or "",
                    "facts": _facts(supervision),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.rename(path)


def _source(recording: Any, channel: int | list[int] | None) -> tuple[str, str, int | None]:
    """Kind and location of a supervision's audio, and its channel; None if it uses all of them."""
    if recording is None:
        return "a missing recording", "", None
    channels = channel if isinstance(channel, list) else [] if channel is None else [channel]
    sources = list(recording.sources)
    if len(sources) > 1:
        sources = [source for source in sources if set(channels) & set(source.channels)]
        if len(sources) != 1:
            return "in several files", "", None
    source = sources[0]
    one = len(channels) == 1 and len(source.channels) > 1 and channels[0] in source.channels
    return source.type, str(source.source), source.channels.index(channels[0]) if one else None


def _facts(supervision: Any) -> dict[str, Any]:
    """Properties of a supervision besides its text: language, the speaker's gender, and custom fields."""
    told = {"language": supervision.language, "gender": supervision.gender, **(supervision.custom or {})}
    return {name: value for name, value in told.items() if isinstance(value, str | int | float | list)}


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _manifests(prepared: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and manifests of every leaf: recipes nest them by part, or by language and part."""
    if "supervisions" in prepared:
        yield prefix or "all", prepared
        return
    for key, value in prepared.items():
        if isinstance(value, Mapping):
            yield from _manifests(value, f"{prefix}/{key}" if prefix else str(key))
