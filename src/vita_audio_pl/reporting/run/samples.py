"""What a stage's model answered while it trained, from `samples/step-<n>/samples.jsonl`, side by side over the steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vita_audio_pl.evaluation.sealed import read_rows
from vita_audio_pl.reporting.run.listening import Sound, sound_of

_STEPS = 4  # shown of a stage, the first and the last among them
SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class SampledAnswer:
    """An answer at one step; `transcript` and `wer` are None where there is no judge or nothing is counted.

    Attributes:
        sound: empty where there is none, or the page leaves it out.
    """

    text: str
    transcript: str | None
    wer: float | None
    sound: Sound
    right: bool | None


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt with its answers, one for each shown step; None where that step has none."""

    id: str
    task: str
    asked: str
    reference: str
    answers: tuple[SampledAnswer | None, ...]


@dataclass(frozen=True)
class StageSamples:
    """The prompts of a stage with their answers at `steps`."""

    stage: str
    steps: tuple[int, ...]
    prompts: tuple[SampledPrompt, ...]


def read_stage_samples(stage: Path) -> StageSamples | None:
    """Samples of `runs/<run>/<stage>`; None where there are none.

    Of many steps four are shown. The first prompt of a task is played, the others are text, or a page would be heavy.
    """
    folders = sorted(stage.glob(f"samples/step-*/{SAMPLES_FILE}"))
    if not folders:
        return None
    shown = _spread([path.parent for path in folders], _STEPS)
    rows = [_read(folder) for folder in shown]
    found: dict[str, dict[str, Any]] = {}
    for step in rows:
        found = step | found
    with_sound = {row["task"]: id for id, row in reversed(found.items())}
    prompts = tuple(
        SampledPrompt(
            id,
            row["task"],
            row["asked"],
            row["reference"],
            tuple(
                _answer(step[id], folder if with_sound[row["task"]] == id else None) if id in step else None
                for step, folder in zip(rows, shown, strict=True)
            ),
        )
        for id, row in found.items()
    )
    return StageSamples(stage.name, tuple(int(folder.name.removeprefix("step-")) for folder in shown), prompts)


def _spread(folders: Sequence[Path], most: int) -> list[Path]:
    if len(folders) <= most:
        return list(folders)
    return [folders[round(place * (len(folders) - 1) / (most - 1))] for place in range(most)]


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_rows(folder / SAMPLES_FILE)}


def _answer(row: dict[str, Any], folder: Path | None) -> SampledAnswer:
    accepted = row["scores"].get("text_accuracy") if row["task"] == "text" else None
    right = bool(accepted["hits"]) if accepted else None if row["wer"] is None else row["wer"] == 0
    sound = sound_of(folder, row["audio"]) if folder is not None and "audio" in row else Sound()
    return SampledAnswer(row["text"], row.get("transcript"), row["wer"], sound, right)
