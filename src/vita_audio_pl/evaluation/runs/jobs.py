"""One evaluation: model, mode, task of a bench, identity of the result, and its folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vita_audio_pl.config.decoding import Greedy, Sampling, decoding_label
from vita_audio_pl.evaluation.identity import Identity
from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.storage.model_folders import home_of, part_of, read_manifest
from vita_audio_pl.storage.names import safe_name

SPEAKING_TASKS = ("tts", "sqa")
GPU_PRECISION = "bfloat16"
"""Precision of answers on a GPU; on a CPU it is that of the model's files."""
_SHOWN = 10  # digits of the key in a folder's name; all of them are in its key.json


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        mode: name shown in reports, e.g. `boost`.
        pattern: who writes which token, `[M, m, M, m, ...]`.
        verify: `none` keeps what the heads drafted, `greedy` lets the backbone check it; see `config.decoding`.
        constrained: inside an audio span only codes, its end marker and the end of the answer may be written.
        max_new_tokens: token limit of an answer.
        sampling: how tokens are drawn.
        slack: how loose verification is, where it has any looseness.
        kernels: digest of the file that states the costs of passes, where heads draft by them; else empty.
        quantize: how weights are held, by the settings or in the folder; None for exact ones.
    """

    mode: str
    pattern: tuple[int, ...]
    verify: str = "none"
    constrained: bool = True
    max_new_tokens: int = 512
    sampling: Sampling = Greedy
    slack: float | None = None
    kernels: str = ""
    quantize: str | None = None

    @property
    def label(self) -> str:
        return decoding_label(self.mode, self.verify, self._draws, self.quantize)

    @property
    def _draws(self) -> bool:
        """Whether anything but the largest logit is taken."""
        return not self.sampling.plain_argmax

    @property
    def drawn(self) -> dict[str, Any]:
        """How tokens are drawn, loosely verified and multiplied, as JSON; empty where it is as in every earlier result."""
        drawn: dict[str, Any] = {"sampling": asdict(self.sampling)} if self._draws else {}
        drawn |= {"kernels": self.kernels} if self.kernels else {}
        drawn |= {"quantize": self.quantize} if self.quantize else {}
        return drawn if self.slack is None else drawn | {"slack": self.slack}

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as JSON."""
        often_none = ("sampling", "slack", "kernels", "quantize")
        return {name: value for name, value in vars(self).items() if name not in often_none} | self.drawn


@dataclass(frozen=True)
class Evaluation:
    """One task, in one mode, with one model.

    Attributes:
        model: the model folder.
        stage: the stage that made it, for tables.
        bench, split, task: where the items are from.
        judge: name of the recogniser that listens to answers; empty where nothing is listened to.
        identity: everything that the result depends on; another identity has another folder.
        place: parent folder of the evaluations of this stage and split.
        batch_size: answers decoded together.
        limited: whether only part of the bench is evaluated.
    """

    model: Path
    stage: str
    bench: str
    split: str
    task: str
    items: tuple[Item, ...]
    decoding: Decoding
    judge: str
    identity: Identity
    place: Path
    batch_size: int = 64
    limited: bool = False

    @property
    def folder(self) -> Path:
        """Folder of records and results: task, mode and number of utterances for readers, and the key."""
        name = f"{self.task}.{self.decoding.label}.{len(self.identity.contents)}"
        return self.place / f"{name}-{self.identity.key[:_SHOWN]}"

    @property
    def bench_folder(self) -> Path:
        """Where results of the bench are, of every stage and split: see `split_folder`."""
        return self.place.parents[1]

    @property
    def is_transcribed(self) -> bool:
        return bool(self.judge) and self.task in SPEAKING_TASKS

    @property
    def name(self) -> str:
        return f"{self.stage} {self.task} {self.decoding.label}"

    def batches(self) -> list[tuple[Item, ...]]:
        """How ranks divide the work: the same batches whatever was done before and however many ranks there are."""
        return [self.items[start : start + self.batch_size] for start in range(0, len(self.items), self.batch_size)]


def codec_folder(model: Path, given: str | None = None) -> Path:
    """Folder of a model's codec: the given one, or the model's own; where there is none, where it would be."""
    return Path(given) if given else part_of(model, "codec") or model / "codec"


def stage_of(folder: Path) -> str:
    """Stage that made a model folder, from its manifest, and the step of a checkpoint; without one, the folder's name."""
    manifest = read_manifest(folder)
    stage = manifest.get("stage")
    if not isinstance(stage, str) or not stage:
        return folder.name
    return f"{stage}-step-{manifest.get('steps')}" if manifest.get("checkpoint") else stage


def audio_file(id: str) -> str:
    """File of an utterance's audio, below the evaluation's folder."""
    return f"audio/{safe_name(id)}.wav"


def bench_folder(output: str | None, model: Path, bench: str, runs: Path | str) -> Path:
    """Where a bench's results go: `runs/<run>/eval/<bench>` beside the stage that `runs/<run>/<stage>/model` is of."""
    return Path(output) if output is not None else home_of(model, runs) / "eval" / safe_name(bench)


def split_folder(bench: Path, stage: str, split: str) -> Path:
    """Parent folder of the evaluations of a stage on a split."""
    return bench / safe_name(stage) / safe_name(split)
