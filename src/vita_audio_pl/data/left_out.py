"""Samples left out of a source: how many may be, and how they are reported."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place

FEW = 20
"""This many samples may be left out of any source, however small."""

_SHOWN = 200  # characters per example


class NothingUsable(UserError):
    """No sample of a source could be used."""


@dataclass(frozen=True)
class LeftOutCounts:
    """Totals over the reports of a source's parts.

    Attributes:
        used: samples in the shards.
        reasons: unusable samples, by reason.
        filtered: samples that the recipe's filters exclude, by reason.
        examples: the first problem of each reason.
        unread: estimated samples in the unreadable rests of parts, from the size of complete parts.
    """

    used: int
    reasons: Counter[str]
    filtered: Counter[str]
    examples: Mapping[str, str]
    unread: int

    @classmethod
    def of(cls, reports: Sequence[Mapping[str, Any]]) -> "LeftOutCounts":
        """Totals of the parts' reports."""
        reasons: Counter[str] = Counter()
        filtered: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for report in reports:
            reasons.update(report["skipped"])
            filtered.update(report.get("filtered", {}))
            for culprit in report["culprits"]:
                examples.setdefault(culprit["reason"], culprit["problem"])
        rows = [
            report["shard"]["samples"] + sum(report["skipped"].values()) + sum(report.get("filtered", {}).values())
            for report in reports
        ]
        whole = [n for n, report in zip(rows, reports, strict=True) if not report.get("rest_lost")]
        usual = round(sum(whole) / len(whole)) if whole else 0
        lost = [max(usual - n, 0) for n, report in zip(rows, reports, strict=True) if report.get("rest_lost")]
        return cls(sum(report["shard"]["samples"] for report in reports), reasons, filtered, examples, sum(lost))

    @property
    def left_out(self) -> int:
        """Unusable samples, including the estimate for unreadable rests."""
        return self.reasons.total() + self.unread

    @property
    def share(self) -> float:
        """Share of the samples that is unusable."""
        return self.left_out / max(self.used + self.left_out, 1)

    def too_many(self, max_skipped: float) -> bool:
        """Whether more than `max_skipped` and more than a few samples are unusable, or all of them."""
        return not self.used or (self.left_out > FEW and self.share > max_skipped)

    def sentence(self, source: str, max_skipped: float, named_in: Place) -> str:
        """The error message with a table by reason."""
        total = self.used + self.left_out
        if not self.used and not self.left_out and not self.filtered:
            return f"no sample of '{source}' could be used: the corpus is empty"
        table = [
            f"{count:>10,}  {reason}, such as: {_short(self.examples[reason])}"
            for reason, count in (*self.reasons.most_common(), *self.filtered.most_common())
        ]
        if self.unread:
            table.append(f"{self.unread:>10,}  about as many in what could not be read of damaged files and archives")
        if not self.used:
            head, more = f"no sample of '{source}' could be used", ""
        else:
            head = (
                f"{self.left_out:,} of {total:,} samples of '{source}' ({self.share:.1%}) could not be used, more than "
                f"max_skipped={max_skipped:g} allows"
            )
            more = f"; or accept the rest with max_skipped={min(math.ceil(self.share * 100 + 1) / 100, 1):g}"
        return "\n".join(
            [
                f"{head}:",
                *table,
                f"They are named in {named_in}. Mend the corpus, or its recipe, and rerun the command, which makes "
                f"the parts concerned again{more}.",
            ]
        )


def summary(report: Mapping[str, Any]) -> str:
    """Entries of a manifest's report about samples that were left out."""
    unread, filtered = report.get("unread", 0), report.get("filtered")
    return (
        f"{_counted(report['skipped'], 'left out')}"
        + (f", {_counted(filtered, 'not wanted by the filters')}" if filtered else "")
        + (f", and about {unread:,} in what could not be read" if unread else "")
    )


def _counted(reasons: Mapping[str, int], what: str) -> str:
    named = ", ".join(f"{reason} {count:,}" for reason, count in Counter(reasons).most_common())
    return f"{sum(reasons.values()):,} {what}{f' ({named})' if named else ''}"


def _short(problem: str) -> str:
    text = " ".join(problem.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
