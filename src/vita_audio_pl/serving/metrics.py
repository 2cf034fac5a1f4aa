"""Server metrics for Prometheus (text format 0.0.4)."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

WINDOW = 1000
"""Number of latest answers that percentiles are computed from."""
_PREFIX = "vita_audio_pl"
Family: TypeAlias = tuple[str, str, str, list[tuple[str, float]]]
"""Name, kind and meaning of a metric, and its values: suffix of the name with labels, and value."""


class Metrics:
    """Metrics of one server; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, int] = {"completed": 0, "cancelled": 0, "failed": 0, "refused": 0}
        self._first_sound: deque[float] = deque(maxlen=WINDOW)
        self._first_sounds = 0
        self._first_sound_sum = 0.0
        self._speech = self._writing = 0.0
        self._tokens: dict[int, int] = {}
        self._drafted: list[int] = []
        self._accepted: list[int] = []
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Register a gauge whose value is `value()` at the time of the request."""
        self._gauges[name] = meaning, value

    def first_sound(self, seconds: float) -> None:
        """Record the seconds from a request (or the end of a spoken turn) to the answer's first audio."""
        with self._lock:
            self._first_sound.append(seconds)
            self._first_sounds += 1
            self._first_sound_sum += seconds

    def answered(
        self,
        outcome: str,
        writers: Sequence[int] = (),
        drafted: Sequence[int] = (),
        accepted: Sequence[int] = (),
        writing: float = 0.0,
        speech: float = 0.0,
    ) -> None:
        """Record the end of an answer: completed, cancelled, failed or refused; its duration, and seconds of speech."""
        with self._lock:
            self._answers[outcome] += 1
            self._writing += writing if speech else 0.0
            self._speech += speech
            for writer in writers:
                self._tokens[writer] = self._tokens.get(writer, 0) + 1
            for totals, counts in ((self._drafted, drafted), (self._accepted, accepted)):
                totals += [0] * (len(counts) - len(totals))
                for head, count in enumerate(counts):
                    totals[head] += count

    def quantile(self, share: float) -> float:
        """Percentile of the time to first audio over the last answers; NaN before the first."""
        ordered = sorted(self._first_sound)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")

    def families(self) -> list[Family]:
        """All metrics."""
        gauges = [(name, meaning, float(value())) for name, (meaning, value) in self._gauges.items()]
        families: list[Family] = []

        def family(name: str, kind: str, meaning: str, samples: Sequence[tuple[str, float]]) -> None:
            families.append((name, kind, meaning, list(samples)))

        with self._lock:
            for name, meaning, value in gauges:
                family(name, "gauge", meaning, [("", value)])
            outcomes = [(f'{{outcome="{name}"}}', count) for name, count in self._answers.items()]
            family("answers_total", "counter", "Answers by how they ended.", outcomes)
            quantiles = [(f'{{quantile="{share}"}}', self.quantile(share)) for share in (0.5, 0.9, 0.99)]
            sums = [("_sum", self._first_sound_sum), ("_count", self._first_sounds)]
            family("first_sound_seconds", "summary", "From the request to the first sound.", [*quantiles, *sums])
            factor = self._writing / self._speech if self._speech else float("nan")
            family("real_time_factor", "gauge", "Seconds of writing for one second of speech.", [("", factor)])
            family("speech_seconds_total", "counter", "Speech made.", [("", self._speech)])
            named = [(f'{{writer="{_writer(writer)}"}}', count) for writer, count in sorted(self._tokens.items())]
            family("tokens_total", "counter", "Tokens written, by who wrote them.", named)
            for name, counts in (("drafted", self._drafted), ("accepted", self._accepted)):
                heads = [(f'{{head="{head}"}}', count) for head, count in enumerate(counts)]
                family(f"drafts_{name}_total", "counter", f"Tokens that a head drafted and were {name}.", heads)
            shares = [
                (f'{{head="{head}"}}', kept / drafts)
                for head, (drafts, kept) in enumerate(zip(self._drafted, self._accepted, strict=True))
                if drafts
            ]
            family("acceptance", "gauge", "Share of a head's drafts that were kept.", shares)
        return families


def text_of(families: Sequence[Family]) -> str:
    """All metrics in Prometheus's text format."""
    lines: list[str] = []
    for name, kind, meaning, samples in families:
        lines += [f"# HELP {_PREFIX}_{name} {meaning}", f"# TYPE {_PREFIX}_{name} {kind}"]
        lines += [f"{_PREFIX}_{name}{suffix} {value:.15g}" for suffix, value in samples]
    return "\n".join(lines) + "\n"


def by_replica(counts: Mapping[str, Sequence[Family]]) -> list[Family]:
    """Metrics of several servers, each value labelled with `replica`."""
    found: dict[str, Family] = {}
    for replica, families in sorted(counts.items()):
        label = f'replica="{replica}"'
        for name, kind, meaning, samples in families:
            known = found.setdefault(name, (name, kind, meaning, []))
            for suffix, value in samples:
                labelled = f"{suffix[:-1]},{label}}}" if suffix.endswith("}") else f"{suffix}{{{label}}}"
                known[3].append((labelled, value))
    return list(found.values())


def _writer(writer: int) -> str:
    return f"head {writer - 1}" if writer else "backbone"
