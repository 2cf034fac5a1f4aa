"""An ablation in sentences: what each arm reaches, how it differs from the first, and what a reader must know first."""

from vita_audio_pl.reporting.experiment.files import ArmRun, ExperimentFiles
from vita_audio_pl.reporting.experiment.first_sound import first_sound
from vita_audio_pl.reporting.experiment.measures import (
    RATES,
    Measure,
    estimate,
    metric,
    paired,
    speed_up,
    values,
)
from vita_audio_pl.reporting.seeds import Estimate
from vita_audio_pl.reporting.tables import USELESS, signed, small_world

IN_WORDS = {
    "Spoken QA, text": "spoken QA in text",
    "Spoken QA, speech": "spoken QA in speech",
    "Spoken QA, WER of the speech": "WER of spoken answers",
    "Text QA": "text QA",
}
"""Names of rates inside a sentence, where they differ from those of columns."""


def headline(files: ExperimentFiles, split: str) -> list[str]:
    """What each arm reaches in its own pattern, how fast, and over how many seeds; beside the first over common seeds.

    Runs of one kind get a sentence for every mode but Vanilla.
    """
    sentences = small_world([result for arm in files.arms for result in arm.run.results])
    modes = [mode for mode in files.modes(split) if mode != "vanilla" and "+" not in mode]
    for mode in modes if len(files.choices) == 1 else modes[:1]:
        for choice in files.choices:
            reached = _reached(files, choice, mode, split)
            if reached:
                sentences.append(reached)
            if choice != files.choices[0]:
                sentences += _beside_first(files, choice, mode, split)
    return sentences


def _reached(files: ExperimentFiles, choice: str, mode: str, split: str) -> str:
    found = [
        (name, rate)
        for name, task, of in RATES
        if (rate := estimate(files, choice, metric(mode, task, of, split))) is not None
    ]
    speed = estimate(files, choice, speed_up(mode, split))
    if not found or speed is None:
        return ""
    rates = ", ".join(f"{IN_WORDS.get(name, name)} {_percent(rate)}" for name, rate in found)
    sentence = f"{choice}, mode {mode}, {_seeds(speed.n)}: {rates}"
    read = estimate(files, choice, metric(mode, "tts", "speech_wer", split))
    if read is not None and read.mean >= USELESS:
        return sentence + "; nothing is said of its speed, since what it speaks is not understood."
    sentence += f"; projected {speed.mean:.2f} times Vanilla's speed"
    verified = estimate(files, choice, speed_up(f"{mode}+verify", split))
    if verified is not None:
        sentence += f", {verified.mean:.2f} times with every token verified"
    sound = next((one for arm in files.of(choice) if (one := first_sound(arm, mode, split)) is not None), None)
    if sound is not None:
        sentence += f"; first codes after {sound.passes:.2f} backbone passes"
    return sentence + "."


def _beside_first(files: ExperimentFiles, choice: str, mode: str, split: str) -> list[str]:
    """The paired differences that a reader looks for first."""
    reference = files.choices[0]
    parts, n = [], 0
    for name, task, of in RATES:
        measure: Measure = metric(mode, task, of, split)
        pair = paired(values(files, measure), choice, reference)
        if pair is not None:
            n = pair.apart.n
            points = signed(100 * pair.apart.mean, "{:+.1f}")
            parts.append(f"{IN_WORDS.get(name, name)} {points} points{_certainty(pair.apart)}")
    if not parts:
        return [f"{choice} and {reference} have no seed in common, so they are not compared."]
    over = "the one common seed, which leaves chance open" if n == 1 else f"the {n} common seeds"
    return [f"{choice} against {reference}, over {over}: {', '.join(parts)}."]


def _certainty(found: Estimate) -> str:
    return {"yes": " (beyond chance)", "no": " (within chance)", "no spread": " (no spread)", "one seed": ""}[
        found.significant
    ]


def cautions(files: ExperimentFiles) -> list[str]:
    """What keeps arms from being compared as they stand: those that are not there, unequal seeds, unequal training."""
    sentences = []
    if files.unfinished:
        sentences.append(f"Not finished, and left out: {', '.join(files.unfinished)}.")
    if files.missing:
        sentences.append(f"Never started: {', '.join(files.missing)}.")
    counts = {choice: len(files.of(choice)) for choice in files.choices}
    if len(set(counts.values())) > 1:
        sentences.append(
            f"Arms have unequal seeds ({', '.join(f'{choice}: {n}' for choice, n in counts.items())}), so their means are "
            "not over the same runs; differences are over common seeds alone."
        )
    if common_steps(files) is None:
        by_steps: dict[str, list[ArmRun]] = {}
        for arm in files.arms:
            by_steps.setdefault(_steps(arm) or "not on record", []).append(arm)
        apart = "; ".join(f"{_named(files, arms)}: {steps}" for steps, arms in by_steps.items())
        sentences.append(f"Arms differ in training steps, so more than their settings sets them apart. {apart}.")
    for arm in files.arms:
        sentences += [f"{arm.run.folder.name}: {note}" for note in arm.run.notes]
    return sentences


def common_steps(files: ExperimentFiles) -> str | None:
    """The steps of every stage where all arms have the same; None where they do not."""
    found = {_steps(arm) for arm in files.arms}
    return found.pop() if len(found) == 1 else None


def _steps(arm: ArmRun) -> str:
    trained = [stage for stage in arm.run.stages if "steps" in stage.manifest]
    return ", ".join(f"{stage.name} {stage.manifest['steps']} steps" for stage in trained)


def _named(files: ExperimentFiles, arms: list[ArmRun]) -> str:
    """Arms by their choices where these are whole, else one by one."""
    names = []
    for choice in dict.fromkeys(arm.choice for arm in arms):
        mine = [arm for arm in arms if arm.choice == choice]
        whole = len(mine) == len(files.of(choice))
        names += [choice] if whole else [f"{choice} with seed {arm.seed}" for arm in mine]
    return ", ".join(names)


def lead_in_sentence(files: ExperimentFiles) -> str:
    """How much of the first sound is silence that arms were trained to begin with; empty where that is not on record."""
    leads = {
        arm.last.manifest.get("config", {}).get("rendering", {}).get("lead_in_codes") for arm in files.arms
    } - {None, 0}  # fmt: skip
    if not leads:
        return ""
    codes = " or ".join(str(lead) for lead in sorted(leads))
    return f"The first {codes} codes of an answer are silence, which arms are trained to begin with, also in the first sound."


def _seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"


def _percent(found: Estimate) -> str:
    spread = "" if found.interval is None else f" ({100 * found.interval[0]:.1f} to {100 * found.interval[1]:.1f})"
    return f"{100 * found.mean:.1f} %{spread}"
