"""What one evaluation is: a model, a mode, a task of a bench, and the folder its records go to."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.evaluation.records import fingerprint

SPEAKING_TASKS = ("tts", "sqa")


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        mode: name shown in reports, e.g. `boost`.
        pattern: who writes which token, `[M, m, M, m, ...]`.
        verify: `none` keeps what the heads drafted, `greedy` lets the backbone check it.
        constrained: inside an audio span only codes, its end marker and the end of the answer may be written.
        max_new_tokens: token limit of an answer.
        batch_size: answers decoded together.
    """

    mode: str
    pattern: tuple[int, ...]
    verify: str = "none"
    constrained: bool = True
    max_new_tokens: int = 512
    batch_size: int = 64

    @property
    def label(self) -> str:
        return self.mode if self.verify == "none" else f"{self.mode}+verify"


@dataclass(frozen=True)
class Evaluation:
    """One task, in one mode, with one model.

    Attributes:
        model: the model folder.
        stage: the stage that made it, for tables.
        bench, split, task: where the items are from.
        judge: name of the recogniser that listens to answers; empty where nothing is listened to.
        folder: where records and results go.
        players: how many of the first items keep their audio as wav files.
        limited: there are more items in the bench than are evaluated.
    """

    model: Path
    stage: str
    bench: str
    split: str
    task: str
    items: tuple[Item, ...]
    decoding: Decoding
    judge: str
    folder: Path
    players: int = 0
    limited: bool = False

    @property
    def listens(self) -> bool:
        return bool(self.judge) and self.task in SPEAKING_TASKS

    @property
    def name(self) -> str:
        return f"{self.stage} {self.task} {self.decoding.label}"

    def without_items(self) -> "Evaluation":
        """This evaluation as it is sent to a process that gets its items batch by batch."""
        return replace(self, items=())

    def codec_header(self) -> bytes:
        """The bytes of the model's `codec.json`, which holds the codec's fingerprint; empty without a codec."""
        path = self.model / "codec" / "codec.json"
        return path.read_bytes() if path.is_file() else b""

    def batches(self) -> list[tuple[Item, ...]]:
        """The units of work: the same ones whatever was done before and however many ranks share them."""
        size = self.decoding.batch_size
        return [self.items[start : start + size] for start in range(0, len(self.items), size)]

    def key(self) -> dict[str, Any]:
        """What the recorded answers depend on; another key means other records."""
        return {
            "model": model_fingerprint(self.model),
            "bench": self.bench,
            "split": self.split,
            "task": self.task,
            "judge": self.judge if self.listens else "",
            "items": fingerprint([[asdict(item.prompt), item.references] for item in self.items]),
            "decoding": asdict(self.decoding) | {"pattern": list(self.decoding.pattern)},
        }


def model_fingerprint(folder: Path) -> str:
    """Identifies the weights of a model folder: their hash in its manifest, else names, sizes and times of its files."""
    weights = _manifest(folder).get("weights")
    if isinstance(weights, str):
        return weights
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json"))
    return fingerprint([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])


def stage_of(folder: Path) -> str:
    """Stage that made a model folder, from its manifest; the folder's name where it has none."""
    stage = _manifest(folder).get("stage")
    return stage if isinstance(stage, str) else folder.name


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def audio_file(id: str) -> str:
    """Where an utterance's audio is kept, below the evaluation's folder: the id without what a path could trip over."""
    return "audio/" + "".join(char if char.isalnum() or char in "-_." else "_" for char in id).lstrip(".") + ".wav"


def players_of(evaluation: Evaluation) -> Sequence[str]:
    """Ids of the items whose audio is kept."""
    return [item.id for item in evaluation.items[: evaluation.players]]
