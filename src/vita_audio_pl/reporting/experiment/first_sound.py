"""Time to the first audio of an answer: passes until then, and its duration."""

from dataclasses import dataclass

from vita_audio_pl.evaluation.sealed import read_rows
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.reporting.experiment.files import ArmRun
from vita_audio_pl.reporting.experiment.measures import HEAD_COST, SPOKEN
from vita_audio_pl.reporting.results.files import Result

CODES_PER_CHUNK = 16
"""Codes after which a streamed answer is played even though their span goes on."""


@dataclass(frozen=True)
class FirstSound:
    """An answer's first sound when it is streamed.

    Attributes:
        backbone_passes, head_passes: until its codes are there, the prompt's pass included.
        codes: of the sound.
        seconds: it lasts; None where no answer on record has its codes.
        head_cost: of a head's pass, in passes of the backbone.
    """

    backbone_passes: int
    head_passes: int
    codes: int
    seconds: float | None
    head_cost: float

    @property
    def passes(self) -> float:
        """All passes, in those of the backbone."""
        return self.backbone_passes + self.head_cost * self.head_passes


def first_sound(arm: ArmRun, mode: str, split: str) -> FirstSound | None:
    """The first sound of an arm's answers in a mode, as its ratio lays them out and the mode's pattern writes them.

    It is played when the first span of codes ends, or holds `CODES_PER_CHUNK`; a pass of the backbone hands out its
    token with those of the heads that follow it. None where drafts are verified (which are kept is not known before),
    where the mode was not evaluated, or where the ratio is not on record.
    """
    results = [found for task in SPOKEN if (found := arm.run.result(arm.last.name, mode, task, split)) is not None]
    ratio = arm.last.manifest.get("text_audio_interval_ratio")
    if not results or not ratio or "pattern" not in results[0].figures or "+" in mode:
        return None
    text, in_span = IntervalRatio(tuple(ratio)).text_runs[0], IntervalRatio(tuple(ratio)).code_runs[0]
    codes = min(in_span, CODES_PER_CHUNK)
    tokens = text + 1 + codes + (in_span < CODES_PER_CHUNK)  # the marker that begins the span, and the one that ends it
    n_heads = int(arm.last.manifest["n_heads"])
    writers = DecodePattern(tuple(results[0].figures["pattern"])).writers(tokens + n_heads + 1, n_heads)
    while writers[tokens] > 0:
        tokens += 1
    by_heads = int((writers[:tokens] > 0).sum())
    pace = seconds_per_code(results[0])
    seconds = None if pace is None else codes * pace
    return FirstSound(tokens - by_heads, by_heads, codes, seconds, HEAD_COST[arm.head_form])


def seconds_per_code(result: Result) -> float | None:
    """How long a code sounds, by the answers of an evaluation; None where their codes were not kept."""
    seconds = {row["id"]: row["seconds"] for row in result.utterances if row.get("seconds")}
    for path in sorted(result.folder.glob("answers.*.jsonl")):
        for answer in read_rows(path, torn=True):
            if answer["id"] in seconds and answer.get("codes"):
                return float(seconds[answer["id"]]) / len(answer["codes"])
    return None
