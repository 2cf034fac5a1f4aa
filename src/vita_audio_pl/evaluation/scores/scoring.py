"""From recorded answers to metrics: per-utterance rows, then rates with confidence intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.evaluation.records import Answer, Transcript
from vita_audio_pl.evaluation.scores.measures import (
    contains_answer,
    contains_substring,
    count_errors,
    exact_match,
)
from vita_audio_pl.evaluation.scores.normalisers import Normaliser
from vita_audio_pl.evaluation.scores.profiles import STRICT, Profile
from vita_audio_pl.evaluation.scores.significance import bootstrap_ratio


@dataclass(frozen=True)
class Metric:
    """A metric of a task.

    Attributes:
        of: what is compared with the reference: the answer's `text`, or its `speech` as the judge transcribed it.
        kind: `errors` (edits per reference unit, lower is better) or `match` (share of accepted answers).
    """

    name: str
    of: str
    kind: str

    @property
    def lower_is_better(self) -> bool:
        return self.kind == "errors"


VOICE = ("similarity", "naturalness")
"""Voice quality of an answer, if measured; means over the answers with audio."""

METRICS: dict[str, tuple[Metric, ...]] = {
    "asr": (Metric("wer", "text", "errors"),),
    "tts": (Metric("speech_wer", "speech", "errors"), Metric("text_wer", "text", "errors")),
    "sqa": (
        Metric("text_accuracy", "text", "match"),
        Metric("speech_accuracy", "speech", "match"),
        Metric("speech_wer", "speech", "errors"),
    ),
    "text": (Metric("text_accuracy", "text", "match"),),
}


AVERAGES = ("pooled", "utterances")


@dataclass(frozen=True)
class Scoring:
    """The rules by which a bench is scored.

    Attributes:
        normalise: from a transcript to units, for reference and hypothesis.
        answers: `exact` (the whole answer must be an accepted one) or `contains` (it must contain one).
        average: of error rates: `pooled` (all errors over all units) or over `utterances` (the mean of their rates).
    """

    normalise: Normaliser
    answers: str = "exact"
    profile: Profile = STRICT
    average: str = "pooled"

    def differences(self) -> list[str]:
        """One sentence for each way in which these rules are not the strict ones."""
        mean = ["error rates are means over utterances"] if self.average == "utterances" else []
        return [*self.profile.differences(), *mean]

    def expected(self, task: str, metric: Metric, references: Sequence[str], answer: Answer) -> list[list[str]]:
        """References of an answer, in units: the accepted answers, without those that normalise to nothing.

        If a spoken answer only has to contain an accepted one, errors of the speech are counted against the model's own
        text: a whole sentence is correct, but differs from the short answer.
        """
        own = task == "sqa" and self.answers == "contains" and metric.kind == "errors"
        return [units for text in ([answer.text] if own else references) if (units := self.normalise(text))]

    def matches(self, references: Sequence[Sequence[str]], said: Sequence[str]) -> bool:
        if self.answers == "exact":
            return exact_match(references, said)
        rule = contains_substring if self.profile.substring_answers else contains_answer
        return rule(references, said)


def score_utterances(
    task: str,
    items: Sequence[Item],
    answers: Mapping[str, Answer],
    transcripts: Mapping[str, Transcript] | None,
    rules: Scoring,
) -> list[dict[str, Any]]:
    """One row per item, in order; failed items have a row, too.

    A row's `scores` maps a metric's name to `{"errors" or "hits", "of"}`; a metric that the profile leaves out for
    this utterance is missing there, and `left_out` says why. Without `transcripts` speech metrics are not computed.

    Raises:
        KeyError: an item has no answer.
    """
    rows = []
    for item in items:
        answer = answers[item.id]
        spoken = transcripts[item.id] if transcripts is not None else None
        row: dict[str, Any] = {
            "id": item.id,
            "reference": item.references[0],
            "text": answer.text,
            "tokens": answer.tokens,
            "backbone_passes": answer.backbone_passes,
            "head_passes": answer.head_passes,
            "stopped": answer.stopped,
            "scores": {},
        }
        if len(item.references) > 1:
            row["other_references"] = list(item.references[1:])
        if item.source is not None:
            row["source"] = str(item.source)
        if item.spoken_reference is not None:
            row["spoken_reference"] = str(item.spoken_reference)
        if spoken is not None:
            row |= {"transcript": spoken.text, "seconds": round(spoken.seconds, 3), "silent": not answer.codes}
            row |= {name: value for name in VOICE if (value := getattr(spoken, name)) is not None}
        if answer.failure:
            row["failure"] = answer.failure
        row["scores"], reason = score_answer(task, item.references, answer, spoken, rules)
        if reason:
            row["left_out"] = reason
        rows.append(row)
    return rows


def score_answer(
    task: str, references: Sequence[str], answer: Answer, transcript: Transcript | None, rules: Scoring
) -> tuple[dict[str, dict[str, int]], str]:
    """Scores of one answer by metric, and why a metric was left out, if one was.

    Args:
        references: accepted answers; error rates are counted against the first, but see `Scoring.expected`.
        transcript: the judge's transcript; without it speech metrics are not computed.
    """
    scores, left_out = {}, ""
    for metric in METRICS[task]:
        said = answer.text if metric.of == "text" else transcript.text if transcript is not None else None
        if said is None:
            continue
        expected = rules.expected(task, metric, references, answer)
        reason = _left_out(metric, answer, rules.profile)
        if not expected and metric.kind == "errors":
            reason = "no text to count errors against"
        if reason:
            left_out = reason
        else:
            scores[metric.name] = _score(metric, task, expected, said, rules)
    return scores, left_out


def _left_out(metric: Metric, answer: Answer, profile: Profile) -> str:
    if answer.failure and profile.skip_missing:
        return "could not be asked"
    if metric.of == "speech" and not answer.codes and profile.drop_silent_answers:
        return "no audio in the answer"
    return ""


def _score(metric: Metric, task: str, references: Sequence[Sequence[str]], said: str, rules: Scoring) -> dict[str, int]:
    units = rules.normalise(said)
    if metric.kind == "match":
        return {"hits": int(rules.matches(references, units)), "of": 1}
    if task == "asr" and rules.profile.cut_asr_at_reference_length:
        units = units[: len(references[0])]
    counts = count_errors(references[0], units)
    return {
        "errors": counts.errors,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "of": counts.reference_units,
    }


def per_utterance(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, tuple[int, int]]:
    """Id -> (errors or hits, units) of one metric, for the rows that have it."""
    found = {}
    for row in rows:
        if metric in row["scores"]:
            score = row["scores"][metric]
            found[row["id"]] = (score["errors"] if "errors" in score else score["hits"], score["of"])
    return found


def passes_by_id(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Id -> backbone passes, of the utterances that could be asked."""
    return {row["id"]: row["backbone_passes"] for row in rows if "failure" not in row}


def summarise(task: str, rows: Sequence[dict[str, Any]], average: str = "pooled") -> dict[str, Any]:
    """Metrics of a set, each with its 95 % confidence interval, counts of failures, cost per answer of those that were asked.

    average: see `Scoring`.
    """
    metrics = {}
    for metric in METRICS[task]:
        scored = per_utterance(rows, metric.name)
        if not scored:
            continue
        tops, bottoms = zip(*scored.values(), strict=True)
        interval = bootstrap_ratio(tops, bottoms)
        if average == "utterances" and metric.kind == "errors":
            interval = bootstrap_ratio([top / bottom for top, bottom in scored.values()], [1] * len(scored))
        metrics[metric.name] = {
            "value": round(interval.value, 5),
            "low": round(interval.low, 5),
            "high": round(interval.high, 5),
            "utterances": len(scored),
            "units": int(sum(bottoms)),
            "lower_is_better": metric.lower_is_better,
        }
    asked = max(1, len(passes_by_id(rows)))
    voice = {name: [row[name] for row in rows if name in row] for name in VOICE}
    return {
        "utterances": len(rows),
        "metrics": metrics,
        "voice": {
            name: {"mean": round(sum(values) / len(values), 4), "utterances": len(values)}
            for name, values in voice.items()
            if values
        },
        "silent": sum(row.get("silent", False) for row in rows),
        "unfinished": sum(not row["stopped"] for row in rows),
        "failed": sum("failure" in row for row in rows),
        "empty": sum(not row["text"].strip() for row in rows),
        "left_out": sum("left_out" in row for row in rows),
        **{
            cost: round(sum(row[cost] for row in rows) / asked, 3)
            for cost in ("backbone_passes", "head_passes", "tokens")
        },
    }


def worst_first(task: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows sorted by the task's metrics, worst first; ties stay in file order."""
    metrics = METRICS[task]

    def badness(row: dict[str, Any]) -> tuple[float, ...]:
        return tuple(_badness(metric, row["scores"].get(metric.name)) for metric in metrics)

    return sorted(rows, key=badness, reverse=True)


def _badness(metric: Metric, score: dict[str, int] | None) -> float:
    if score is None:
        return float("inf")
    return float(score["errors"] / score["of"] if metric.lower_is_better else 1 - score["hits"])
