"""Records of an evaluation: append-only JSONL files, so that a killed evaluation loses nothing."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.identity import Identity
from vita_audio_pl.storage.files import explain_full_disk, write_json

KEY_FILE = "key.json"
_EARLIER_STEMS = {"transcripts": "heard"}  # older records are still readable


class Measured(NamedTuple):
    """How the seconds of an answer were taken; records that do not say so have those of first use among them, too.

    Attributes:
        together: how many answers were decoded at a time; 0 where it was not recorded.
        machine: name of the processor or GPU; empty where it was not recorded.
    """

    together: int = 0
    machine: str = ""

    def __str__(self) -> str:
        if not self.together:
            return "by an earlier version, at an unknown number at a time and with what is done once"
        return f"{self.together} at a time on {self.machine}"


@dataclass(frozen=True)
class Answer:
    """The model's answer to one item.

    Attributes:
        text: decoded text of the answer, special tokens removed.
        codes: audio codes in order, without markers; empty for an answer without audio.
        tokens: generated tokens, including markers and the closing token.
        backbone_passes: forward passes of the backbone, the prefill included.
        head_passes: forward passes of MCTP heads.
        stopped: the closing token came before the token limit.
        failure: why nothing was generated, e.g. an unreadable recording; such answers count as empty.
        drafted, accepted: drafts that the backbone checked, and those of them that it kept; 0 without verification.
        compute_seconds: cost of generating it: CPU seconds, or elapsed seconds on a GPU; shared between answers decoded
            together in proportion to their tokens. None if not measured.
        together, machine: see `Measured`.
    """

    id: str
    text: str = ""
    codes: tuple[int, ...] = ()
    tokens: int = 0
    backbone_passes: int = 0
    head_passes: int = 0
    stopped: bool = True
    failure: str = ""
    drafted: int = 0
    accepted: int = 0
    compute_seconds: float | None = field(default=None, compare=False)
    together: int = field(default=0, compare=False)
    machine: str = field(default="", compare=False)

    @property
    def measured(self) -> Measured:
        """How `compute_seconds` was taken."""
        return Measured(self.together, self.machine)

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Answer":
        return cls(
            **{name: value for name, value in record.items() if name != "question"} | {"codes": tuple(record["codes"])}
        )


@dataclass(frozen=True)
class Transcript:
    """The judge's transcript of one spoken answer.

    Attributes:
        seconds: length of the answer.
        similarity: cosine with the prompted voice, if measured.
        naturalness: predicted mean opinion score, 1 to 5, if measured.
    """

    id: str
    text: str
    seconds: float
    similarity: float | None = None
    naturalness: float | None = None


@dataclass(frozen=True)
class TranscriptFile:
    """Transcripts by the hash of the audio; one append-only JSONL file shared by runs."""

    path: Path

    def read(self) -> dict[str, Transcript]:
        earlier = self.path.with_name("heard.jsonl")  # its name in an earlier version
        rows = [row for path in (earlier, self.path) if path.is_file() for row in _rows(path.read_bytes())]
        known = {each.name for each in fields(Transcript)}
        return {
            row["sound"]: Transcript(**{name: row[name] for name in row.keys() & known})
            for row in rows
            if "sound" in row
        }

    def append(self, transcripts: dict[str, Transcript]) -> None:
        """Add one batch with a single write, so that batches of other processes are not interleaved with it."""
        append_rows(self.path, [{"format": 1, "sound": sound} | asdict(one) for sound, one in transcripts.items()])


@dataclass
class RecordFile:
    """Records of one evaluation, written by one or several ranks, read as one mapping from id to record.

    Every rank appends to its own file, `<stem>.<rank>.jsonl`; all ranks read all files. If two have an id, the
    first one counts, so a record never changes.
    """

    folder: Path
    stem: str
    rank: int = 0
    _records: dict[str, dict[str, Any]] = field(default_factory=dict)
    _read: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read what was added since the last call, also by other ranks."""
        stems = [self.stem, *filter(None, [_EARLIER_STEMS.get(self.stem)])]
        for path in sorted(path for stem in stems for path in self.folder.glob(f"{stem}.*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for record in _rows(whole):
                if isinstance(record.get("id"), str):
                    self._records.setdefault(record["id"], record)

    def done(self, ids: Iterable[str]) -> bool:
        return all(id in self._records for id in ids)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add one batch with a single write."""
        append_rows(self.folder / f"{self.stem}.{self.rank}.jsonl", rows)
        for row in rows:
            self._records.setdefault(row["id"], row)

    def __contains__(self, id: str) -> bool:
        return id in self._records

    def __getitem__(self, id: str) -> dict[str, Any]:
        return self._records[id]

    def __len__(self) -> int:
        return len(self._records)


def claim_folder(folder: Path, identity: Identity) -> None:
    """Claim `folder` for the evaluation with this identity; existing contents are never changed.

    Raises:
        UserError: the folder belongs to another evaluation, or has other contents.
    """
    path = folder / KEY_FILE
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        found = None
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}); move {folder} away, the answers in it cannot be trusted"
        ) from None
    if found is None:
        other = next((file.name for file in sorted(folder.glob("*")) if not file.name.startswith(".")), None)
        if other is not None:
            raise UserError(f"{folder} holds {other}, but no {KEY_FILE} of ours; give another folder as output=DIR")
        folder.mkdir(parents=True, exist_ok=True)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(path, {"key": identity.key, "created": created, **identity.facts})
    elif not isinstance(found, dict) or found.get("key") != identity.key:
        raise UserError(f"{folder} belongs to another evaluation; give another folder as output=DIR")


def answered_elsewhere(folder: Path, identity: Identity) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Sibling folders with the same answers to the same questions, and their `key.json`: another limit, judge or mode."""
    for path in sorted(folder.parent.glob(f"*/{KEY_FILE}")):
        if path.parent != folder:
            try:
                facts = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue
            if isinstance(facts, dict) and facts.get("answers") == identity.answers:
                yield path.parent, facts


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append JSON lines in one write; a line that a kill truncated is terminated first, so that no other is damaged."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    with explain_full_disk(path.parent, path.name), path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else b"\n" + text
        while text:
            text = text[file.write(text) :]


def _rows(data: bytes) -> list[dict[str, Any]]:
    """The objects of JSON lines; truncated lines are skipped."""
    found = []
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found
