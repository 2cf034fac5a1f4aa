"""Plain WebDataset tars of audio: members of one sample share their name up to the first dot."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vita_audio_pl.data.readers.base import AudioBytes, Part, RawSample, Unreadable, file_identities, files_matching
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceRules

_LARGEST = 256 * 2**20  # bytes of a member; more is no utterance


@dataclass(frozen=True)
class WebDatasetReader:
    """Tars of `KEY.flac` (or wav, mp3, ...) beside `KEY.txt` or `KEY.json`.

    Members are read in memory and their names never used as paths; names that are absolute or hold `..` are left out.

    Attributes:
        root: the corpus.
        task, speaker_prompt, lower, join: see `UtteranceRules`.
        files: globs below `root`.
        audio: extensions of audio members.
        text: extension of the member that holds the transcript, as text or JSON.
        text_key, speaker_key: keys of the JSON.
    """

    root: Path
    task: str = "asr"
    files: tuple[str, ...] = ("**/*.tar",)
    audio: tuple[str, ...] = ("wav", "flac", "mp3", "ogg", "opus", "m4a")
    text: str = "txt"
    text_key: str = "text"
    speaker_key: str = "speaker"
    speaker_prompt: bool = False
    lower: bool = False
    join: bool = False

    def parts(self) -> list[Part]:
        described = json.dumps([repr(self._rules), self.audio, self.text, self.text_key, self.speaker_key])
        rules = hashlib.sha256(described.encode()).hexdigest()[:12]
        paths = files_matching(self.root, self.files)
        return [
            Part(str(path.relative_to(self.root)), f"{content} {rules}", {"path": str(path)}, path.stat().st_mtime_ns)
            for path, content in zip(paths, file_identities(paths, self.root), strict=True)
        ]

    @property
    def _rules(self) -> UtteranceRules:
        return UtteranceRules(self.task, self.speaker_prompt, self.lower, self.join)

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        yield from self._rules.samples(self._utterances(Path(str(part.where["path"]))))

    def _utterances(self, path: Path) -> Iterator[Utterance | Unreadable]:
        key, members = "", dict[str, bytes]()
        try:
            with tarfile.open(path, "r|*") as tar:
                for member in tar:
                    name = PurePosixPath(member.name)
                    if not member.isfile():
                        continue
                    if name.is_absolute() or ".." in name.parts:
                        where = f"{path}:{member.name!r}"
                        yield Unreadable(where, f"{where}: a member name must not lead anywhere", "unsafe member name")
                        continue
                    if member.size > _LARGEST:
                        where = f"{path}:{member.name}"
                        yield Unreadable(where, f"{where}: {member.size} bytes are no utterance", "member too large")
                        continue
                    stem, _, extension = name.name.partition(".")
                    at = str(name.with_name(stem))
                    if at != key and members:
                        yield self._utterance(path, key, members)
                        members = {}
                    key = at
                    file = tar.extractfile(member)
                    members[extension.lower()] = file.read() if file else b""
        except (tarfile.TarError, EOFError, OSError) as error:
            rest = f"{path}: the archive is damaged after '{key}' ({error}); what follows could not be read"
            yield Unreadable(str(path), rest, "damaged archive")
            return
        if members:
            yield self._utterance(path, key, members)

    def _utterance(self, path: Path, key: str, members: dict[str, bytes]) -> Utterance | Unreadable:
        where = f"{path}:{key}"
        audio = next((extension for extension in self.audio if extension in members), None)
        if audio is None:
            return Unreadable(where, f"{where}: it has no audio, only {', '.join(members)}", "no audio")
        if self.text not in members:
            return Unreadable(where, f"{where}: it has no member .{self.text}", "no transcript")
        speaker = ""
        try:
            text = members[self.text].decode("utf-8")
            if self.text.endswith("json"):
                values = json.loads(text)
                text, speaker = str(values[self.text_key]), str(values.get(self.speaker_key, ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return Unreadable(where, f"{where}: its .{self.text} cannot be read ({error!r})", "no transcript")
        return Utterance(f"{path.stem}/{key}", AudioBytes(f"{where}.{audio}", members[audio]), text, speaker)
