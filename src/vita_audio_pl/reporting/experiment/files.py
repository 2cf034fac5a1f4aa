"""Reads an ablation from disk: its arms, one for each choice and seed, and their runs."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import NAMED_RATIOS
from vita_audio_pl.reporting.run_files import RunFiles, Stage

ARM = "arm.json"


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed.

    Attributes:
        choice: what makes the arm, as shown: `served_slots`, `n_heads 5`.
        facts: its `arm.json`: settings, stages with their cost, evaluation.
        run: its stages and results.
    """

    choice: str
    facts: dict[str, Any]
    run: RunFiles

    @property
    def seed(self) -> int:
        return int(self.facts["seed"])

    @property
    def last(self) -> Stage:
        return self.run.stages[-1]

    @property
    def head_form(self) -> str:
        """`mctp` or `parallel`."""
        config = self.last.manifest.get("config") or {}
        return str(config.get("model", {}).get("heads", "mctp"))

    def rows(self, mode: str, task: str, split: str) -> list[dict[str, Any]]:
        """The last stage's utterances in a mode: those that it answered in all modes, so that modes can be compared."""
        result = self.run.result(self.last.name, mode, task, split)
        if result is None:
            return []
        others = [r for r in self.run.results if (r.stage, r.task, r.split) == (self.last.name, task, split)]
        common = set.intersection(*({row["id"] for row in other.utterances} for other in others))
        return [row for row in result.utterances if row["id"] in common]


@dataclass(frozen=True)
class ExperimentFiles:
    """All finished arms of an ablation, in the order of its axes.

    Attributes:
        unfinished: names of arms without results yet, which are left out and reported.
        missing: choices and seeds that never met, though each of them was started with another.
    """

    folder: Path
    name: str
    question: str
    arms: tuple[ArmRun, ...]
    unfinished: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path, bench: str | None = None) -> "ExperimentFiles":
        """Read `runs/<experiment>`.

        Raises:
            UserError: there is no such folder, or no arm in it is finished.
        """
        facts = {
            path.parent: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"[!.]*/{ARM}"))
        }
        if not facts:
            raise UserError(
                f"there is no ablation in {folder}; run one with 'python -m vita_audio_pl.train -m experiment=...', and "
                "check paths.runs"
            )
        done = {place: arm for place, arm in facts.items() if arm["finished"]}
        unfinished = tuple(place.name for place in facts if place not in done)
        if not done:
            raise UserError(
                f"no arm in {folder} is finished; rerun the command that started them to resume: {unfinished[0]}, ..."
            )
        varied = varied_keys([arm["settings"] for arm in facts.values()])
        started = sorted(facts.values(), key=lambda arm: int(arm["number"]))
        cells = [(choice_of(arm["settings"], varied), int(arm["seed"])) for arm in started]
        order = list(dict.fromkeys(choice for choice, _ in cells))
        grid = [(choice, seed) for choice in order for seed in sorted({seed for _, seed in cells})]
        missing = tuple(f"{choice} with seed {seed}" for choice, seed in grid if (choice, seed) not in cells)
        arms = [
            ArmRun(choice_of(arm["settings"], varied), arm, RunFiles.read(place, bench)) for place, arm in done.items()
        ]
        arms.sort(key=lambda arm: (order.index(arm.choice), arm.seed))
        return cls(folder, folder.name, str(arms[0].facts["question"]), tuple(arms), unfinished, missing)

    @classmethod
    def of_runs(cls, folders: Sequence[Path], bench: str | None = None) -> "ExperimentFiles":
        """Finished runs of one kind, say a demo's seeds, as the arms of an ablation with a single choice.

        Raises:
            UserError: a run is missing, or two have the same seed.
        """
        arms = []
        for folder in folders:
            run = RunFiles.read(folder, bench)
            seed = int(run.stages[-1].manifest.get("config", {}).get("seed", 0))
            facts = {"settings": {}, "seed": seed, "stages": [], "evaluation": {}}
            arms.append(ArmRun(choice_of({}, []), facts, run))
        seeds = [arm.seed for arm in arms]
        if len(set(seeds)) != len(seeds):
            raise UserError(f"runs of different seeds make a mean, but these have seeds {', '.join(map(str, seeds))}")
        question = "What does a run reach in each mode, and how much do seeds differ?"
        return cls(folders[0].parent, "seeds of one run", question, tuple(sorted(arms, key=lambda arm: arm.seed)))

    @cached_property
    def choices(self) -> list[str]:
        return list(dict.fromkeys(arm.choice for arm in self.arms))

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({arm.seed for arm in self.arms})

    @cached_property
    def sample_seed(self) -> int:
        """The seed that most arms have, the lowest of several."""
        arms = Counter(arm.seed for arm in self.arms)
        return max(self.seeds, key=lambda seed: (arms[seed], -seed))

    def of(self, choice: str) -> list[ArmRun]:
        """The arms of a choice, by seed."""
        return [arm for arm in self.arms if arm.choice == choice]

    def modes(self, split: str) -> list[str]:
        """Modes in which the last stages were evaluated, in order."""
        found = (mode for arm in self.arms for stage, mode in arm.run.rows(split) if stage == arm.last.name)
        return list(dict.fromkeys(found))

    def differing_stages(self) -> list[str]:
        """Stages that two arms of one seed trained apart, in order."""
        folders: dict[str, dict[int, set[str]]] = {}
        for arm in self.arms:
            for stage in arm.facts["stages"]:
                folders.setdefault(stage["stage"], {}).setdefault(arm.seed, set()).add(stage["folder"])
        return [stage for stage, by_seed in folders.items() if any(len(apart) > 1 for apart in by_seed.values())]


def varied_keys(settings: Sequence[dict[str, str]]) -> list[str]:
    """Settings that not all arms share."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({one.get(key) for one in settings}) > 1]


def choice_of(settings: dict[str, str], varied: Sequence[str]) -> str:
    """What an arm chose where the arms vary, for readers."""
    words = []
    for key in varied:
        value = settings.get(key, "default")
        numbers = tuple(int(number) for number in re.findall(r"\d+", value))
        named = {runs: name for name, runs in NAMED_RATIOS.items()}.get(numbers)
        shown = value.strip("[]").replace(",", " ")
        if key.endswith("ratio"):
            shown += f" ({named})" if named else ""
        elif not re.fullmatch(r"[a-z]\w*", value) or value in ("true", "false", "null", "default"):
            shown = shown if value.startswith("[") else f"{key.rpartition('.')[2]} {shown}"
        words.append(shown)
    return ", ".join(words) or "as configured"
