"""Reads what a run left on disk: curves, manifests, evaluation results. Nothing here is recomputed."""

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.results.files import Result, read_json, read_result
from vita_audio_pl.reporting.results.shown import choose_controls, choose_results
from vita_audio_pl.storage.metrics import read_metrics

MODE_ORDER = ("vanilla", "own", "balance", "boost", "turbo")


@dataclass(frozen=True)
class Curve:
    """One logged figure over the optimiser steps of a stage."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Stage:
    """One trained stage: its figures by name (`train/loss`, `val/loss_head_0`, ...), its manifest and its folder."""

    name: str
    curves: dict[str, Curve]
    manifest: dict[str, Any]
    folder: Path | None = None

    def head_curves(self, prefix: str) -> list[Curve]:
        """The curves `<prefix>0`, `<prefix>1`, ... in order."""
        found: list[Curve] = []
        while f"{prefix}{len(found)}" in self.curves:
            found.append(self.curves[f"{prefix}{len(found)}"])
        return found


@dataclass(frozen=True)
class RunFiles:
    """Everything that a report needs of one run, and of one bench in it.

    Attributes:
        results: an evaluation for each stage, split, task and mode, in the order of stages, then modes from slow to fast.
        controls: how well the judge hears known recordings, empty if it was not measured.
        comparisons: paired differences against Vanilla (`comparisons.json`), empty if there are none.
        durations: seconds of each step of the demo, empty where it was not the demo.
        notes: sentences about results that are there and not shown, or not to be compared.
        judges: the same sounds by two judges, the latest measurement; empty if there is none.
    """

    folder: Path
    bench: str
    stages: tuple[Stage, ...]
    results: tuple[Result, ...]
    controls: dict[str, Any]
    comparisons: tuple[dict[str, Any], ...]
    durations: dict[str, float]
    notes: tuple[str, ...] = ()
    judges: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, bench: str | None = None) -> "RunFiles":
        """Read `runs/<run>`; `bench` is needed only where the run was measured on several.

        Raises:
            UserError: the folder is not there, or holds neither curves nor results, or results of several benches.
        """
        if not folder.is_dir():
            raise UserError(f"there is no run in {folder}; check run_name and paths.runs")
        if bench is None:
            measured = sorted({path.parents[3].name for path in folder.glob("eval/*/*/*/*/result.json")})
            if len(measured) > 1:
                raise UserError(f"{folder} was measured on {', '.join(measured)}; choose one with bench_name=NAME")
            bench = measured[0] if measured else ""
        stages = _in_order([_read_stage(path) for path in sorted(folder.glob("*/metrics.csv"))])
        place = folder / "eval" / bench
        weights = {stage.name: stage.manifest["weights"] for stage in stages if stage.manifest.get("weights")}
        found = [read_result(path) for path in sorted(place.glob("*/*/*/result.json"))]
        results, notes = choose_results(found, weights)
        if not stages and not found:
            raise UserError(f"{folder} holds no metrics.csv of a stage and no results of bench '{bench}'")
        order = [stage.name for stage in stages]

        def rank(result: Result) -> tuple[int, str, int, str]:
            known = order.index(result.stage) if result.stage in order else len(order)
            mode = str(result.figures["mode"])
            return known, result.stage, MODE_ORDER.index(mode) if mode in MODE_ORDER else len(MODE_ORDER), result.mode

        results.sort(key=rank)
        comparisons = read_json(place / "comparisons.json", {})
        controls = [read_json(path, {}) for path in sorted(place.glob("controls/*/controls.json"))]
        judges = [read_json(path, {}) for path in sorted(place.glob("second_judge/*/judges.json"))]
        return cls(
            folder,
            bench,
            tuple(stages),
            tuple(results),
            choose_controls(controls, results) or read_json(place / "controls.json", {}),
            tuple(comparisons["comparisons"]) if isinstance(comparisons, dict) and comparisons else (),
            read_json(folder / "durations.json", {}).get("seconds", {}),
            tuple(notes),
            max(judges, key=lambda one: str(one.get("created", "")), default={}),
        )

    def result(self, stage: str, mode: str, task: str, split: str = "test") -> Result | None:
        """One evaluation, or None where it was not made."""
        wanted = (stage, mode, task, split)
        return next((r for r in self.results if (r.stage, r.mode, r.task, r.split) == wanted), None)

    def rows(self, split: str) -> list[tuple[str, str]]:
        """The (stage, mode) pairs that were evaluated on a split, in order."""
        return list(dict.fromkeys((r.stage, r.mode) for r in self.results if r.split == split))


def _read_stage(path: Path) -> Stage:
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, row in read_metrics(path)[0].items():
        for name, value in row.items():
            curves.setdefault(name, []).append((step, float(value)))
    return Stage(
        path.parent.name,
        {name: Curve(*zip(*points, strict=True)) for name, points in curves.items()},
        read_json(path.parent / "model" / "manifest.json", {}),
        path.parent,
    )


def _in_order(stages: list[Stage]) -> list[Stage]:
    """Parents before children, as the manifests say; stages without a known parent by name."""
    parents = {stage.name: stage.manifest.get("parent_stage") for stage in stages}

    def depth(name: str) -> int:
        seen = {name}
        parent = parents.get(name)
        while parent and parent not in seen:
            seen.add(parent)
            parent = parents.get(parent)
        return len(seen)

    return sorted(stages, key=lambda stage: (depth(stage.name), stage.name))


def asset(name: str) -> str:
    """Text of a file that the pages are made of."""
    return resources.files("vita_audio_pl.reporting").joinpath(name).read_text(encoding="utf-8")
