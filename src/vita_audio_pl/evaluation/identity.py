"""The identity of a result: everything that it depends on. Two evaluations with the same identity are the same.

Weights, recordings and the judge's files count by content, so a copy is the same and a changed file is different,
whatever their names and times. Batch size, device, processes and the number of stored examples do not count; the
precision, which depends on the device, does.

Where verification is loose (`groups`) or sampled, answers also depend on how far heads draft, and so on a CPU on the costs
of passes there. A file of recorded ones (`kernels=FILE`) counts by content. Costs that are measured do not: such results
are repeated with the `kernels-*.json` beside their answers.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.storage.checksums import CHECKSUMS, FileSum, read_checksums, sum_of_files
from vita_audio_pl.storage.model_folders import read_manifest

FORMAT = 2
"""Version of identities and records; raised when the same facts would give other answers or metrics."""
RESULT_FORMAT = 3
"""Of `result.json` and its `utterances.jsonl`, whose rows called a `transcript` `heard` in format 2."""
RESULT_FORMATS = (2, RESULT_FORMAT)
"""Those that say what decided the result, and can be read."""

_NO_WEIGHTS = ("manifest.json", "generation_config.json", CHECKSUMS)  # the pattern counts where it is used
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py")
_MODEL_FOLDERS = ("tokenizer", "codec", "speech_input")
_MANIFEST_FACTS = ("weights", "vocabulary", "tokenizer", "codec_fingerprint")


@dataclass(frozen=True)
class Content:
    """Identity of one utterance.

    Attributes:
        question: digest of the model's input: text and recordings of the prompt.
        whole: digest of the input and the references.
        voice: digest of the voice prompt's recording; empty without one.
    """

    question: str
    whole: str
    voice: str = ""


@dataclass(frozen=True)
class Identity:
    """Everything that a result depends on.

    Attributes:
        task: determines the metrics.
        model: digest of the model's files, tokenizer and codec included.
        weights: the hash of the weights in its manifest; empty without one.
        codec: digest of its codec's files.
        answering: how answers are generated: pattern, verification, constraint, token limit, precision.
        unreadable: how unreadable recordings are handled: `refuse` or `count`.
        listening: the judge and voice models with their files; empty for answers without audio.
        scoring: normaliser, units, which answers are correct.
        contents: utterances by id.
    """

    task: str
    model: str
    weights: str
    codec: str
    answering: Mapping[str, Any]
    unreadable: str
    listening: Mapping[str, Any]
    scoring: Mapping[str, Any]
    contents: Mapping[str, Content]

    @cached_property
    def utterances(self) -> str:
        """Digest of the set of utterances, independent of their order."""
        return digest(sorted((id, content.question, content.whole) for id, content in self.contents.items()))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The identity as JSON; `answers` is equal wherever equal questions have equal answers."""
        facts = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        facts["contents"] = {"utterances": len(self.contents), "digest": self.utterances}
        return {"format": FORMAT, "answers": self.answers, **json.loads(json.dumps(facts))}

    @cached_property
    def answers(self) -> str:
        return digest([FORMAT, self.model, dict(self.answering)])

    @cached_property
    def key(self) -> str:
        """The name of the result, 20 hexadecimal digits."""
        return digest(self.facts)


def digest(value: Any) -> str:
    """Stable hash of a JSON value, 20 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


def content_of(items: Iterable[Item], recordings: Mapping[Path, str]) -> dict[str, Content]:
    """The contents of items by id; `recordings` are the digests of all recordings of their prompts."""
    found = {}
    for item in items:
        audios = [recordings[Path(path)] for path in item.prompt.audios]
        question = digest([[asdict(message) for message in item.prompt.messages], audios])
        voice = "" if item.voice is None else recordings[item.voice]
        found[item.id] = Content(question, digest([question, item.references]), voice)
    return found


def model_facts(folder: Path) -> tuple[str, str]:
    """`Identity.model` and `Identity.weights` of a model folder."""
    manifest = read_manifest(folder)
    facts = {name: manifest[name] for name in _MANIFEST_FACTS if name in manifest}
    files = {path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.name not in _NO_WEIGHTS}
    if (written := read_checksums(folder)) is not None:  # files that were added to the model's own do not count
        files = {path for path in files if path.name in written}
    files |= {path for name in _MODEL_FOLDERS for path in _all_files(folder / name)}  # read, whoever put them there
    return digest([facts, _names_and_contents(folder, files)]), str(manifest.get("weights", ""))


def path_digest(path: Path | str | None) -> str:
    """Digest of a file's contents, or of all files below a folder; empty without a path, `missing` if it does not exist."""
    if path is None:
        return ""
    path = Path(path)
    if path.is_dir():
        return digest(_names_and_contents(path, _all_files(path)))
    return file_digests([path])[path]


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Digests of files' contents, each read once per process; `missing` for unreadable ones."""
    versions = {path: _version(path) for path in paths}
    unread = [path for path, version in versions.items() if version is not None and version not in _known]
    try:
        sums = sum_of_files(unread)
    except OSError:  # one cannot be read: the others can
        sums = {path: found for path in unread if (found := _sum_of(path)) is not None}
    _known.update({versions[path]: digest([found.bytes, found.blocks]) for path, found in sums.items()})
    return {path: _known.get(version, "missing") for path, version in versions.items()}


_Version = tuple[Path, int, int] | None

_known: dict[_Version, str] = {}


def _version(path: Path) -> _Version:
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return (path.absolute(), facts.st_size, facts.st_mtime_ns) if path.is_file() else None


def _sum_of(path: Path) -> FileSum | None:
    try:
        return sum_of_files([path])[path]
    except OSError:
        return None


def _names_and_contents(folder: Path, files: Iterable[Path]) -> list[tuple[str, str]]:
    digests = file_digests(files)
    return sorted((path.relative_to(folder).as_posix(), found) for path, found in digests.items())


def _all_files(folder: Path) -> Sequence[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
