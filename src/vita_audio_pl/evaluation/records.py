"""Append-only JSONL files that survive a kill: finished batches are kept, a torn one is done again."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError


@dataclass(frozen=True)
class Answer:
    """What the model gave for one item.

    Attributes:
        text: decoded text of the answer, special tokens removed.
        codes: audio codes in order, without markers; empty where the answer is silent.
        tokens: generated tokens, markers and the closing token included.
        backbone_passes: forward passes of the backbone, the prefill included.
        head_passes: forward passes of MCTP heads.
        stopped: the closing token came before the token limit.
        failure: why nothing was generated, e.g. an unreadable recording; such answers count as empty.
    """

    id: str
    text: str = ""
    codes: tuple[int, ...] = ()
    tokens: int = 0
    backbone_passes: int = 0
    head_passes: int = 0
    stopped: bool = True
    failure: str = ""

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Answer":
        return cls(**{**record, "codes": tuple(record["codes"])})


@dataclass(frozen=True)
class Heard:
    """What the judge understood of one spoken answer.

    Attributes:
        seconds: length of the answer.
        similarity: cosine with the prompted voice, where both were measured.
        naturalness: predicted mean opinion score, 1 to 5, where it was measured.
    """

    id: str
    text: str
    seconds: float
    similarity: float | None = None
    naturalness: float | None = None


@dataclass(frozen=True)
class HeardFile:
    """What the judge heard, by the hash of what it listened to; one append-only JSONL file for several runs."""

    path: Path

    def read(self) -> dict[str, Heard]:
        if not self.path.is_file():
            return {}
        lines = map(json.loads, _complete_lines(self.path)[0])
        return {line.pop("sound"): Heard(**line) for line in lines}

    def append(self, heard: dict[str, Heard]) -> None:
        """Add one batch with a single write, which other processes' batches do not mix with."""
        text = "".join(
            json.dumps({"sound": sound} | asdict(one), ensure_ascii=False) + "\n" for sound, one in heard.items()
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.write(text.encode())


@dataclass
class RecordFile:
    """Records of one evaluation, written by one or several ranks, read as one mapping from id to record.

    Every rank appends to a file of its own, `<stem>.<rank>.jsonl`; all ranks read all files. A batch counts as done
    when all its ids are there, so results never depend on where a run was cut.
    """

    folder: Path
    stem: str
    rank: int = 0
    _records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in sorted(self.folder.glob(f"{self.stem}.*.jsonl")):
            whole, torn = _complete_lines(path)
            if torn and path == self._own():
                write_atomically(path, "".join(line + "\n" for line in whole))
            for line in whole:
                record = json.loads(line)
                self._records.setdefault(record["id"], record)

    def _own(self) -> Path:
        return self.folder / f"{self.stem}.{self.rank}.jsonl"

    def done(self, ids: Iterable[str]) -> bool:
        return all(id in self._records for id in ids)

    def append(self, records: Sequence[Answer] | Sequence[Heard]) -> None:
        """Add one batch with a single write."""
        rows = [asdict(record) for record in records]
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._own().open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
        self._records.update({row["id"]: row for row in rows})

    def __getitem__(self, id: str) -> dict[str, Any]:
        return self._records[id]

    def __len__(self) -> int:
        return len(self._records)


def claim_folder(folder: Path, key: dict[str, Any]) -> bool:
    """Make `folder` the place of the evaluation that `key` describes; True where earlier work on it can go on.

    Records of another evaluation (another model, another limit) that lie there are removed: they would be mixed up.
    """
    path = folder / "key.json"
    text = json.dumps(key, indent=2, sort_keys=True, ensure_ascii=False)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return True
    stale = path.is_file()
    for old in sorted(folder.glob("*.jsonl")) + sorted(folder.glob("audio/*.wav")) + sorted(folder.glob("result*")):
        if not stale:
            raise UserError(f"{folder} holds {old.name}, but no evaluation of ours; give another folder as `output`")
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    return False


def fingerprint(value: Any) -> str:
    """Short stable hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _complete_lines(path: Path) -> tuple[list[str], bool]:
    """Lines that hold a whole record, and whether anything else was there (a write that a kill cut short)."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    whole = []
    for line in lines[:-1]:
        try:
            json.loads(line)
        except json.JSONDecodeError:
            break
        whole.append(line)
    return whole, "".join(line + "\n" for line in whole) != text
