"""Cost of an ablation: its arms, what they shared, and whether timings are reliable."""

from typing import Any

from vita_audio_pl.reporting.experiment.files import ArmRun, ExperimentFiles
from vita_audio_pl.reporting.seeds import Estimate, over_seeds
from vita_audio_pl.reporting.tables import NOT_MEASURED, Cell, Table, estimate_cell

SHARED_MACHINE = 1.5
"""Ratio of wall to CPU seconds per core above which a stage has waited for other processes."""


def cost_table(files: ExperimentFiles) -> Table:
    """What each choice cost: CPU seconds of a complete arm, of what was made for it alone, and of its evaluation."""
    rows = []
    for choice in files.choices:
        arms = [arm for arm in files.of(choice) if arm.facts["stages"]]
        if not arms:
            continue
        parts = (
            [training_cost(arm) for arm in arms],
            [sum(_cpu(stage) for stage in arm.facts["stages"] if not stage["reused"]) for arm in arms],
            [_cpu(arm.facts["stages"][-1]) for arm in arms],
            [_cpu(arm.facts["evaluation"]) for arm in arms],
        )
        waited = [found for arm in arms for stage in arm.facts["stages"] if (found := stretch(arm, stage)) is not None]
        rows.append(
            (
                Cell(choice),
                *(estimate_cell(over_seeds(part, 0.0), "{:,.0f}") for part in parts),
                Cell(f"{max(waited):.1f}", max(waited)) if waited else NOT_MEASURED,
                Cell(str(len(arms)), len(arms)),
            )
        )
    headers = ("Arm", "Training, CPU s, if alone", "of that made here", "its last stage", "Evaluation, CPU s",
               "Wall s per CPU s of a core, at most", "Seeds")  # fmt: skip
    return Table(headers, tuple(rows))


def cost_sentences(files: ExperimentFiles) -> list[str]:
    """What was reused from where, what the sweep cost beside one arm, and which costs other work has inflated."""
    reused: dict[tuple[str, str], list[str]] = {}
    for arm in files.arms:
        for stage in arm.facts["stages"]:
            if stage["reused"]:
                reused.setdefault((stage["stage"], stage["made_by"]), []).append(arm.run.folder.name)
    sentences = [
        f"{stage} made by {made_by} was reused by {len(names)} arm{'s' if len(names) > 1 else ''} ({', '.join(names)})."
        for (stage, made_by), names in reused.items()
    ]
    if not sentences and cost_table(files).rows:
        sentences = ["Nothing was reused: no two arms agree on a stage."]
    return [*sentences, *_sweep_sentences(files), *_contention_sentences(files)]


def sweep_over_arm(files: ExperimentFiles) -> Estimate | None:
    """CPU seconds of all stages of a seed's arms, shared ones once, over the mean of what its arms cost alone.

    Only seeds where all choices are there and every stage's cost is on record.
    """
    ratios = []
    for seed in files.seeds:
        arms = [arm for arm in files.arms if arm.seed == seed]
        stages = {stage["folder"]: _cpu(stage) for arm in arms for stage in arm.facts["stages"]}
        if len(arms) == len(files.choices) > 1 and stages and all(stages.values()):
            ratios.append(sum(stages.values()) * len(arms) / sum(training_cost(arm) for arm in arms))
    return over_seeds(ratios, 0.0)


def training_cost(arm: ArmRun) -> float:
    """CPU seconds of all stages of an arm, its own and those that it took over."""
    return sum(_cpu(stage) for stage in arm.facts["stages"])


def stretch(arm: ArmRun, stage: dict[str, Any]) -> float | None:
    """Wall seconds of a stage over its CPU seconds per core that it was given (one, where that is not on record).

    None where a GPU worked, or where nothing was measured.
    """
    manifest = next((one.manifest for one in arm.run.stages if one.name == stage["stage"]), {})
    trainer = manifest.get("config", {}).get("trainer", {})
    if trainer.get("accelerator", "cpu") != "cpu" or not _cpu(stage):
        return None
    cores: int = trainer.get("devices", 1) * trainer.get("num_nodes", 1) * (trainer.get("threads") or 1)
    return float(stage.get("wall_seconds", 0.0)) * cores / _cpu(stage)


def _sweep_sentences(files: ExperimentFiles) -> list[str]:
    ratio = sweep_over_arm(files)
    if ratio is None:
        return []
    spread = ""
    if ratio.interval is not None:
        spread = f"; 95 % interval {ratio.interval[0]:.2f} to {ratio.interval[1]:.2f}"
    seeds = f"{ratio.n} seed{'s' if ratio.n > 1 else ''} that all arms have"
    return [
        f"Training the {len(files.choices)} arms of a seed, what they share once, cost {ratio.mean:.2f} times what their "
        f"mean arm costs alone (over the {seeds}{spread})."
    ]


def _contention_sentences(files: ExperimentFiles) -> list[str]:
    """Stages that took much longer than their CPU time: other processes used the same cores."""
    waited: dict[str, tuple[float, str]] = {}
    for arm in files.arms:
        for stage in arm.facts["stages"]:
            found = stretch(arm, stage)
            if found is not None and found > SHARED_MACHINE:
                waited[stage["folder"]] = (found, f"{stage['stage']} of {stage['made_by']}")
    if not waited:
        return []
    named = ", ".join(f"{name} ({found:.1f})" for found, name in sorted(waited.values(), reverse=True))
    return [
        f"The machine was shared: wall seconds were over {SHARED_MACHINE} times the CPU seconds per core in {named}. "
        "Other work on the same cores also inflates CPU seconds, so costs are to be compared with care."
    ]


def _cpu(part: dict[str, Any]) -> float:
    return float(part.get("cpu_seconds", 0.0))
