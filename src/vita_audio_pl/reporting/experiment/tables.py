"""An ablation's tables: results over seeds, differences paired by seed, held-out accuracy of the heads."""

from vita_audio_pl.reporting.experiment.files import ExperimentFiles
from vita_audio_pl.reporting.experiment.first_sound import first_sound
from vita_audio_pl.reporting.experiment.measures import (
    RATES,
    SPOKEN,
    Measure,
    Paired,
    Values,
    accuracy_by_head,
    distinct_modes,
    estimate,
    heads_accuracy,
    metric,
    paired,
    passes,
    repeated_modes,
    speed_up,
    values,
)
from vita_audio_pl.reporting.results.files import Result
from vita_audio_pl.reporting.seeds import Estimate, over_seeds
from vita_audio_pl.reporting.tables import (
    COMPUTING,
    NOT_MEASURED,
    Cell,
    Table,
    computing,
    computing_note,
    estimate_cell,
)

SPEED_UP = "Speed-up, projected"
"""From counted passes, with the published cost of a head; the measured cost stands beside it."""


def results_over_seeds(files: ExperimentFiles, split: str) -> Table:
    """One row for each choice and mode: means over seeds with 95 % intervals."""
    modes = distinct_modes(files, split)
    rates = [
        (name, task, of)
        for name, task, of in RATES
        if any(values(files, metric(mode, task, of, split)) for mode in modes)
    ]
    rows = []
    measured: list[Result] = []
    for choice in files.choices:
        for mode in modes:
            seeds = [arm.seed for arm in files.of(choice) if any(arm.rows(mode, task, split) for task in SPOKEN)]
            if not seeds:
                continue
            cells = [Cell(choice), Cell(mode)]
            for _, task, name in rates:
                cells.append(estimate_cell(estimate(files, choice, metric(mode, task, name, split)), "{:.1f} %", 100))
            cells.append(estimate_cell(estimate(files, choice, passes(mode, split)), "{:.1f}"))
            cells.append(estimate_cell(estimate(files, choice, speed_up(mode, split)), "{:.2f} x"))
            timed = [arm.run.result(arm.last.name, mode, task, split) for arm in files.of(choice) for task in SPOKEN]
            cells.append(computing([result for result in timed if result is not None]))
            measured += [result for result in timed if result is not None]
            cells.append(_first_sound(files, choice, mode, split))
            n, of = len(seeds), len(files.seeds)
            rows.append((*cells, Cell(str(n) if n == of else f"{n} of {of}", n)))
    headers = ("Arm", "Mode", *(name for name, _, _ in rates), "Backbone passes per answer", SPEED_UP, COMPUTING,
               "First codes after, passes", "Seeds")  # fmt: skip
    repeats = [
        f"{mode} is not shown: in every arm it gave {same}'s answers in the same passes."
        for mode, same in repeated_modes(files, split).items()
    ]
    return Table(headers, tuple(rows), labels=2, caption=" ".join(filter(None, [*repeats, computing_note(measured)])))


def _first_sound(files: ExperimentFiles, choice: str, mode: str, split: str) -> Cell:
    found = next((sound for arm in files.of(choice) if (sound := first_sound(arm, mode, split)) is not None), None)
    if found is None:
        return NOT_MEASURED
    length = f"{found.codes} codes" if found.seconds is None else f"{found.seconds:.2f} s"
    return Cell(f"{found.passes:.2f}", found.passes, length)


def differences_by_seed(files: ExperimentFiles, split: str) -> Table:
    """Every other choice against the first one over the seeds that both have, for the modes and figures of both.

    What is no comparison is left out, and named in the caption: figures that are equal in all arms of a seed, and
    those of two choices that another mode has as well, seed by seed.
    """
    rows: list[tuple[Cell, ...]] = []
    equal: list[str] = []
    repeated: dict[tuple[str, str, str], list[str]] = {}
    reference = files.choices[0]
    earlier: dict[str, dict[str, Values]] = {}
    for mode in distinct_modes(files, split):
        for name, shown, factor, measure in _compared(mode, split):
            found = values(files, measure)
            pairs = {c: pair for c in files.choices[1:] if (pair := paired(found, c, reference)) is not None}
            if not pairs:
                continue
            if all(found.get((reference, seed), value) == value for (_, seed), value in found.items()):
                equal.append(f"{name} in {mode}")
                pairs = {}
            for choice, pair in pairs.items():
                mine = _of(found, choice, reference)
                modes = earlier.get(name, {})
                same = next((other for other, theirs in modes.items() if _of(theirs, choice, reference) == mine), None)
                if same is None:
                    rows.append(_difference(choice, mode, name, pair, shown, factor))
                else:
                    repeated.setdefault((name, mode, same), []).append(choice)
            earlier.setdefault(name, {})[mode] = found
    headers = ("Arm", "Mode", "Figure", "Its mean", f"{reference}'s", "Difference", "Beyond chance", "Common seeds")
    rows.sort(key=lambda row: files.choices.index(row[0].text))
    repeats = [
        f"{name} in {mode} (as in {same}{'' if len(of) == len(files.choices) - 1 else ': ' + ', '.join(of)})"
        for (name, mode, same), of in repeated.items()
    ]
    return Table(headers, tuple(rows), labels=3, caption=_of_chance(rows, equal, repeats))


def _of(found: Values, *choices: str) -> Values:
    return {cell: value for cell, value in found.items() if cell[0] in choices}


def _difference(choice: str, mode: str, name: str, pair: Paired, shown: str, factor: float) -> tuple[Cell, ...]:
    return (
        Cell(choice),
        Cell(mode),
        Cell(name),
        Cell(shown.format(factor * pair.mine), pair.mine),
        Cell(shown.format(factor * pair.theirs), pair.theirs),
        _apart(pair.apart, shown, factor),
        _sure(pair.apart),
        Cell(str(pair.apart.n), pair.apart.n),
    )


def _compared(mode: str, split: str) -> list[tuple[str, str, float, Measure]]:
    """What is compared of a mode: name, form, factor, figure."""
    rates = [(name, "{:.1f} %", 100.0, metric(mode, task, of, split)) for name, task, of in RATES]
    return rates if mode == "vanilla" else [*rates, (SPEED_UP, "{:.2f} x", 1.0, speed_up(mode, split))]


def _of_chance(rows: list[tuple[Cell, ...]], equal: list[str], repeats: list[str]) -> str:
    """How many intervals chance alone would make leave zero out, and what is not counted among them."""
    sentences = []
    told = [row[6].text for row in rows]
    intervals = told.count("yes") + told.count("no")
    if intervals:
        sentences.append(
            f"{told.count('yes')} of {intervals} intervals leave zero out; one in twenty, here {intervals / 20:.1f}, would "
            "by chance if nothing differed."
        )
    if equal:
        sentences.append(f"Left out, being equal in all arms of every seed: {', '.join(equal)}.")
    if repeats:
        sentences.append(f"Left out, being another mode's in every seed: {', '.join(repeats)}.")
    return " ".join(sentences)


def heads_table(files: ExperimentFiles) -> Table:
    """Held-out accuracy of the heads at the end of each stage that arms trained apart, and against the first choice."""
    rows = []
    reference = files.choices[0]
    for stage in files.differing_stages():
        found = values(files, heads_accuracy(stage))
        for choice in files.choices:
            heads = [by_head for arm in files.of(choice) if (by_head := accuracy_by_head(arm, stage))]
            if not heads:
                continue
            pair = paired(found, choice, reference) if choice != reference else None
            ends = ([by_head[0] for by_head in heads], [by_head[-1] for by_head in heads])
            mean, first, last = (
                estimate_cell(over_seeds(part, 0.0, 1.0), "{:.1f} %", 100)
                for part in ([sum(by_head) / len(by_head) for by_head in heads], *ends)
            )
            apart = [NOT_MEASURED] * 3
            if pair is not None:
                apart = [
                    _apart(pair.apart, "{:.1f} %", 100),
                    _sure(pair.apart),
                    Cell(str(pair.apart.n), pair.apart.n),
                ]
            rows.append((Cell(stage), Cell(choice), mean, first, last, Cell(str(len(heads)), len(heads)), *apart))
    headers = ("Stage", "Arm", "Mean of the heads", "First head", "Last head", "Seeds", f"Against {reference}",
               "Beyond chance", "Common seeds")  # fmt: skip
    return Table(headers, tuple(rows), labels=2)


def _apart(found: Estimate, shown: str, factor: float) -> Cell:
    """A difference with its sign; of rates in percentage points."""
    return estimate_cell(found, shown.replace("{:", "{:+").replace(" %", ""), factor)


def _sure(found: Estimate) -> Cell:
    return Cell(found.significant, float(found.significant == "yes"))
