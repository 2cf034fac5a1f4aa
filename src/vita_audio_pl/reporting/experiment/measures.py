"""What is read of an ablation's arms, and how it stands over seeds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from vita_audio_pl.reporting.experiment.files import ArmRun, ExperimentFiles
from vita_audio_pl.reporting.seeds import Estimate, over_seeds
from vita_audio_pl.reporting.tables import FIGURES

HEAD_COST = {"mctp": 0.11, "parallel": 0.08}
"""A head's pass over the backbone's, by the form of the heads: as published for the 7B model, and for a parallel head the same share
of the weights that it reads there (0.62 of 0.86 billion, nearly all of them the vocabulary's)."""

SPOKEN = ("tts", "sqa")
RATES = (*FIGURES[:4], ("Spoken QA, WER of the speech", "sqa", "speech_wer"), FIGURES[4])
"""Rates of an arm in a mode: name, task, metric."""


Values: TypeAlias = dict[tuple[str, int], float]
"""A figure by choice and seed."""


@dataclass(frozen=True)
class Measure:
    """A figure of an arm, never below zero.

    Attributes:
        read: gives it, or None where it was not measured.
        most: what it can be at most.
    """

    read: Callable[[ArmRun], float | None]
    most: float = math.inf


@dataclass(frozen=True)
class Paired:
    """A figure of two choices over the seeds that both have: both means, and the mean of the differences."""

    mine: float
    theirs: float
    apart: Estimate


def metric(mode: str, task: str, name: str, split: str) -> Measure:
    """A rate of the last stage in a mode, over the utterances that it answered in all modes."""

    def read(arm: ArmRun) -> float | None:
        scores = [row["scores"][name] for row in arm.rows(mode, task, split) if name in row["scores"]]
        of = sum(score["of"] for score in scores)
        return sum(score.get("errors", score.get("hits", 0)) for score in scores) / of if of else None

    return Measure(read, 1.0 if name.endswith("accuracy") else math.inf)


def passes(mode: str, split: str) -> Measure:
    """Backbone passes per spoken answer."""

    def read(arm: ArmRun) -> float | None:
        asked = [row["backbone_passes"] for row in _spoken_rows(arm, mode, split) if "failure" not in row]
        return sum(asked) / len(asked) if asked else None

    return Measure(read)


def speed_up(mode: str, split: str) -> Measure:
    """Vanilla's passes over this mode's, a head's pass counted as its form's `HEAD_COST` of the backbone's."""

    def cost(arm: ArmRun, mode: str) -> float:
        rows = _spoken_rows(arm, mode, split)
        return float(sum(row["backbone_passes"] + HEAD_COST[arm.head_form] * row["head_passes"] for row in rows))

    def read(arm: ArmRun) -> float | None:
        vanilla, mine = cost(arm, "vanilla"), cost(arm, mode)
        return vanilla / mine if vanilla and mine else None

    return Measure(read)


def heads_accuracy(stage: str) -> Measure:
    """Held-out accuracy at a stage's end, mean of the heads, each over the tokens that it writes in the arm's pattern."""

    def read(arm: ArmRun) -> float | None:
        heads = accuracy_by_head(arm, stage)
        return sum(heads) / len(heads) if heads else None

    return Measure(read, 1.0)


def accuracy_by_head(arm: ArmRun, stage: str) -> list[float]:
    """Held-out accuracy at a stage's end by head, first head first; empty where no head was measured."""
    curves = next((one.head_curves("val/served_accuracy_head_") for one in arm.run.stages if one.name == stage), [])
    return [curve.values[-1] for curve in curves]


def values(files: ExperimentFiles, measure: Measure) -> Values:
    """A figure of all arms, where it was measured."""
    found = ((arm, measure.read(arm)) for arm in files.arms)
    return {(arm.choice, arm.seed): value for arm, value in found if value is not None}


def estimate(files: ExperimentFiles, choice: str, measure: Measure) -> Estimate | None:
    """A figure of a choice over its seeds."""
    found = [value for arm in files.of(choice) if (value := measure.read(arm)) is not None]
    return over_seeds(found, 0.0, measure.most)


def paired(found: Values, choice: str, reference: str) -> Paired | None:
    """A choice beside the reference over their common seeds, of what `values` gives; None where they have none."""
    seeds = [seed for mine, seed in found if mine == choice and (reference, seed) in found]
    apart = over_seeds([found[choice, seed] - found[reference, seed] for seed in seeds])
    if apart is None:
        return None
    mine, theirs = (sum(found[one, seed] for seed in seeds) / len(seeds) for one in (choice, reference))
    return Paired(mine, theirs, apart)


def repeated_modes(files: ExperimentFiles, split: str) -> dict[str, str]:
    """Modes that gave another mode's answers in the same passes in every arm, and the other.

    Verified decoding starts a new draft after each pass, so the pattern has no effect where there are as many heads.
    """
    seen: dict[str, list[list[Any]]] = {}
    repeats: dict[str, str] = {}
    for mode in files.modes(split):
        answers = [
            sorted(
                (row["id"], row["text"], row["backbone_passes"], row["head_passes"])
                for row in _spoken_rows(arm, mode, split)
            )
            for arm in files.arms
        ]
        same = next((other for other, theirs in seen.items() if theirs == answers), None)
        if same is None or not any(answers):
            seen[mode] = answers
        else:
            repeats[mode] = same
    return repeats


def distinct_modes(files: ExperimentFiles, split: str) -> list[str]:
    """Modes in which the last stages were evaluated, without those that repeat another."""
    repeats = repeated_modes(files, split)
    return [mode for mode in files.modes(split) if mode not in repeats]


def _spoken_rows(arm: ArmRun, mode: str, split: str) -> list[dict[str, Any]]:
    return [row for task in SPOKEN for row in arm.rows(mode, task, split)]
