"""An ablation's tables: results over seeds, differences paired by seed, cost and what was shared."""

from collections.abc import Callable
from typing import Any

from vita_audio_pl.reporting.experiment_files import ArmRun, ExperimentFiles
from vita_audio_pl.reporting.seeds import Estimate, over_seeds
from vita_audio_pl.reporting.tables import FIGURES, NOT_MEASURED, Cell, Table

HEAD_COST = 0.11
"""A head's pass over the backbone's, as published for the 7B model."""

SPOKEN = ("tts", "sqa")
Figure = Callable[[ArmRun], float | None]


def metric(mode: str, task: str, name: str, split: str) -> Figure:
    """Reads a rate of the last stage in a mode, over the utterances that it answered in all modes."""

    def read(arm: ArmRun) -> float | None:
        scores = [row["scores"][name] for row in arm.rows(mode, task, split) if name in row["scores"]]
        of = sum(score["of"] for score in scores)
        return sum(score.get("errors", score.get("hits", 0)) for score in scores) / of if of else None

    return read


def passes(mode: str, split: str) -> Figure:
    """Backbone passes per spoken answer."""

    def read(arm: ArmRun) -> float | None:
        rows = [row for task in SPOKEN for row in arm.rows(mode, task, split)]
        return sum(row["backbone_passes"] for row in rows) / len(rows) if rows else None

    return read


def speed_up(mode: str, split: str) -> Figure:
    """Vanilla's passes over this mode's, a head's pass counted as `HEAD_COST` of the backbone's."""

    def cost(arm: ArmRun, mode: str) -> float:
        rows = (row for task in SPOKEN for row in arm.rows(mode, task, split))
        return float(sum(row["backbone_passes"] + HEAD_COST * row["head_passes"] for row in rows))

    return lambda arm: cost(arm, "vanilla") / cost(arm, mode) if cost(arm, "vanilla") and cost(arm, mode) else None


def estimate(files: ExperimentFiles, choice: str, figure: Figure) -> Estimate | None:
    """A figure of a choice over its seeds."""
    return over_seeds([value for arm in files.of(choice) if (value := figure(arm)) is not None])


def difference(files: ExperimentFiles, choice: str, reference: str, figure: Figure) -> Estimate | None:
    """A figure of a choice minus the reference's, paired by seed."""
    theirs = {arm.seed: figure(arm) for arm in files.of(reference)}
    pairs = ((figure(arm), theirs.get(arm.seed)) for arm in files.of(choice))
    return over_seeds([mine - other for mine, other in pairs if mine is not None and other is not None])


def results_over_seeds(files: ExperimentFiles, split: str) -> Table:
    """One row for each choice and mode: means over seeds with 95 % intervals."""
    rows = []
    for choice in files.choices:
        for mode in files.modes(split):
            if not any(
                arm.run.result(arm.last.name, mode, task, split) for arm in files.of(choice) for task in ("tts", "sqa")
            ):
                continue
            cells = [Cell(choice), Cell(mode)]
            for _, task, name in FIGURES[:4]:
                cells.append(_rate(estimate(files, choice, metric(mode, task, name, split))))
            cells.append(_number(estimate(files, choice, passes(mode, split)), "{:.1f}"))
            cells.append(_number(estimate(files, choice, speed_up(mode, split)), "{:.2f} x"))
            n = len(files.of(choice))
            rows.append((*cells, Cell(str(n), n)))
    headers = ("Arm", "Mode", *(name for name, _, _ in FIGURES[:4]), "Backbone passes per answer", "Speed-up", "Seeds")
    return Table(headers, tuple(rows), labels=2)


def differences_by_seed(files: ExperimentFiles, split: str) -> Table:
    """Every other choice against the first one, paired by seed, for the modes and figures that both have."""
    rows = []
    reference = files.choices[0]
    for choice in files.choices[1:]:
        for mode in files.modes(split):
            for name, task, of in FIGURES[:4]:
                found = difference(files, choice, reference, metric(mode, task, of, split))
                if found is not None:
                    rows.append(
                        (
                            Cell(choice),
                            Cell(mode),
                            Cell(name),
                            _points(found),
                            _sure(found),
                            Cell(str(found.n), found.n),
                        )
                    )
            found = difference(files, choice, reference, speed_up(mode, split)) if mode != "vanilla" else None
            if found is not None:
                rows.append((Cell(choice), Cell(mode), Cell("Speed-up"), _number(found, "{:+.2f} x"), _sure(found),
                             Cell(str(found.n), found.n)))  # fmt: skip
    headers = ("Arm", "Mode", "Figure", f"Against {reference}", "Beyond chance", "Seeds")
    return Table(headers, tuple(rows), labels=3)


def cost_table(files: ExperimentFiles) -> Table:
    """What each choice cost: CPU seconds of a whole arm, of what was made for it alone, and of its evaluation."""
    rows = []
    for choice in files.choices:
        arms = [arm for arm in files.of(choice) if arm.facts["stages"]]
        if not arms:
            continue
        whole = over_seeds([training_cost(arm) for arm in arms])
        made = over_seeds([sum(_cpu(stage) for stage in arm.facts["stages"] if not stage["reused"]) for arm in arms])
        judged = over_seeds([_cpu(arm.facts["evaluation"]) for arm in arms])
        head_time = over_seeds([_cpu(arm.facts["stages"][-1]) for arm in arms])
        rows.append((Cell(choice), *(_number(one, "{:,.0f}") for one in (whole, made, head_time, judged))))
    headers = ("Arm", "Training, CPU s, if alone", "of that made here", "its last stage", "Evaluation, CPU s")
    return Table(headers, tuple(rows))


def sharing_sentences(files: ExperimentFiles) -> list[str]:
    """What was reused from where, and what the sweep cost beside one arm."""
    reused: dict[tuple[str, str], list[str]] = {}
    for arm in files.arms:
        for stage in arm.facts["stages"]:
            if stage["reused"]:
                reused.setdefault((stage["stage"], stage["made_by"]), []).append(arm.run.folder.name)
    sentences = [
        f"{stage} made by {made_by} was reused by {len(names)} arm{'s' if len(names) > 1 else ''} ({', '.join(names)})."
        for (stage, made_by), names in reused.items()
    ]
    ratio = sweep_over_arm(files)
    if ratio is not None:
        sentences.append(
            f"Training the {len(files.choices)} arms of a seed cost {ratio.mean:.2f} times what one arm costs alone"
            + (f" (95 % interval over seeds {ratio.low:.2f} to {ratio.high:.2f})." if ratio.low is not None else ".")
        )
    return sentences or (["Nothing was reused: no two arms agree on a stage."] if cost_table(files).rows else [])


def sweep_over_arm(files: ExperimentFiles) -> Estimate | None:
    """CPU seconds of all stages of a seed's arms, shared ones once, over those of the dearest arm alone.

    Only seeds where all choices are there and every stage's cost is on record.
    """
    ratios = []
    for seed in sorted({arm.seed for arm in files.arms}):
        arms = [arm for arm in files.arms if arm.seed == seed]
        stages = {stage["folder"]: _cpu(stage) for arm in arms for stage in arm.facts["stages"]}
        if len(arms) == len(files.choices) > 1 and all(stages.values()):
            ratios.append(sum(stages.values()) / max(training_cost(arm) for arm in arms))
    return over_seeds(ratios)


def training_cost(arm: ArmRun) -> float:
    """CPU seconds of all stages of an arm, its own and those that it took over."""
    return sum(_cpu(stage) for stage in arm.facts["stages"])


def _cpu(part: dict[str, Any]) -> float:
    return float(part.get("cpu_seconds", 0.0))


def _rate(found: Estimate | None) -> Cell:
    return _number(found, "{:.1f} %", 100)


def _points(found: Estimate) -> Cell:
    return _number(found, "{:+.1f}", 100)


def _number(found: Estimate | None, shown: str, factor: float = 1.0) -> Cell:
    if found is None:
        return NOT_MEASURED
    detail = ""
    if found.low is not None and found.high is not None:
        bare = shown.replace(" %", "").replace(" x", "")
        detail = f"{bare.format(factor * found.low)} to {bare.format(factor * found.high)}"
    return Cell(shown.format(factor * found.mean), found.mean, detail)


def _sure(found: Estimate) -> Cell:
    return Cell("yes" if found.excludes_zero else "one seed" if found.low is None else "no", float(found.excludes_zero))
