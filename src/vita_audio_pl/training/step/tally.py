"""Running sums between two log entries, kept on the device so that no step synchronises with it."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vita_audio_pl.models.flops import Work, frames_and_pairs, rows_and_pairs
from vita_audio_pl.models.layout import to_device
from vita_audio_pl.models.objectives import HeadLosses
from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch

TRAIN = "train"
ENCODER_STATE = 0.06
"""Seconds of audio per state of the speech encoder."""
PREFERENCE = ("logp_chosen", "logp_rejected", "reward_chosen", "reward_rejected", "reward_accuracy")
"""Figures of answers in pairs, means over the pairs; `reward_margin` is made of them."""


class Tally:
    """Accumulates losses, hits and tokens of batches; `read` averages them and resets.

    Args:
        n_heads: MCTP heads of the model.
        source_names: name of each data source, by its number in `PackedBatch.sources`.
        codes: first audio code id and one past the last, to count hours of audio; None counts none.
        codes_per_second: rate of the codec.
    """

    def __init__(
        self,
        n_heads: int,
        source_names: Sequence[str] = (),
        codes: tuple[int, int] | None = None,
        codes_per_second: float = 12.5,
    ) -> None:
        self.n_heads, self.source_names = n_heads, tuple(source_names)
        self.codes, self.codes_per_second = codes, codes_per_second
        self._sums: Tensor | None = None
        self._steps = 0
        self._since, self._before = time.perf_counter(), 0.0  # start of the clock, and seconds of a run before this one
        self.work: Work | None = None
        """Amount of training between the last two readings, over all ranks."""
        self.seconds = 0.0
        """Seconds between the last two readings."""

    def add(self, losses: HeadLosses, batch: PackedBatch, *, ends_step: bool = True) -> None:
        """Add a batch; `ends_step`: whether it completes its optimiser step."""
        tokens = batch.document_ids >= 0
        per_source = torch.bincount(batch.sources[tokens].to(torch.int64), minlength=len(self.source_names))
        first, end = self.codes or (0, 0)
        codes = (batch.input_ids >= first) & (batch.input_ids < end)
        sizes = [batch.input_ids.numel(), sum(map(len, batch.names)), *frames_and_pairs(batch)]
        scored = batch.labels != IGNORE_INDEX
        weight = float((scored if batch.loss_weights is None else batch.loss_weights * scored).sum(dtype=torch.float64))
        counted = [
            rows_and_pairs(batch, self.n_heads),
            torch.as_tensor([weight, int(tokens.sum()), int(codes.sum()), *sizes], dtype=torch.float64),
            per_source[: len(self.source_names)].double(),
        ]
        total = losses.total.detach().double()
        figures = torch.cat(
            [
                torch.stack([total, total * batch.divisor]),
                losses.sums.double(),
                losses.counts.double(),
                losses.correct.double(),
                losses.served.double(),
                losses.served_correct.double(),
                _pair_sums(losses.pairs).to(losses.sums.device),
                to_device(torch.cat(counted).numpy(), losses.sums.device),
            ]
        )
        self._sums = figures if self._sums is None else self._sums + figures
        self._steps += ends_step

    def read(self, prefix: str, reduce: bool, device: torch.device | str = "cpu") -> dict[str, float]:
        """Metrics since the last reading, named `<prefix>/...`; with `reduce` summed over ranks, all of which call it.

        `train/loss` is the objective per step, divisor and weights included; elsewhere it is the mean over all labels
        by weight (over the pairs, where answers come in pairs), so that it does not depend on the batches and ranks that
        they were shared out to. `loss_main`, `loss_head_<k>` and the accuracies are means over the labels that the
        predictor was scored on, `served_accuracy_...` over those of them that it writes under the decoding pattern, and
        `served_accuracy` over what all heads write.
        """
        predictors = 1 + self.n_heads
        sums = self._sums
        if reduce:
            if sums is None:
                sums = torch.zeros(self._size, dtype=torch.float64, device=device)
            torch.distributed.all_reduce(sums)
        if sums is None or not sums.any():
            return {}
        values = iter(sums.tolist())

        def each() -> list[float]:
            return [next(values) for _ in range(predictors)]

        total, numerator = next(values), next(values)
        loss, counts, correct, served, served_correct = (each() for _ in range(5))
        compared, *preferred = (next(values) for _ in range(1 + len(PREFERENCE)))
        rows, pairs = each(), each()
        weight, tokens, codes, slots, samples, frames, frame_pairs = (next(values) for _ in range(7))
        self.seconds = max(self._elapsed, 1e-9)
        self.work = Work(rows, pairs, counts, frames, frame_pairs)
        loss_of_all = total / max(1, self._steps) if prefix == TRAIN else numerator / max(compared or weight, 1e-12)
        figures = {f"{prefix}/loss": loss_of_all}
        for predictor in range(predictors):
            name = "main" if predictor == 0 else f"head_{predictor - 1}"
            if counts[predictor]:
                figures[f"{prefix}/loss_{name}"] = loss[predictor] / counts[predictor]
                figures[f"{prefix}/accuracy_{name}"] = correct[predictor] / counts[predictor]
            if served[predictor]:
                figures[f"{prefix}/served_accuracy_{name}"] = served_correct[predictor] / served[predictor]
        if sum(served[1:]):
            figures[f"{prefix}/served_accuracy"] = sum(served_correct[1:]) / sum(served[1:])
        if compared:
            means = dict(zip(PREFERENCE, (value / compared for value in preferred), strict=True))
            means["reward_margin"] = means["reward_chosen"] - means["reward_rejected"]
            figures |= {f"{prefix}/{name}": value for name, value in means.items()}
        if prefix == TRAIN:
            audio = codes / self.codes_per_second + frames * ENCODER_STATE
            figures |= {
                "tokens_per_second": tokens / self.seconds,
                "samples_per_second": samples / self.seconds,
                "audio_hours_per_second": audio / 3600 / self.seconds,
                "padding_share": 1 - tokens / max(1.0, slots),
            }
            for name, count in zip(self.source_names, values, strict=True):
                figures[f"source/{name}"] = count / max(1.0, tokens)
        self.restart()
        return figures

    def restart(self) -> None:
        """Reset all counts and the clock."""
        self._sums, self._steps, self._before = None, 0, 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Count seconds from now on, beside those of the run that this one resumes."""
        self._since = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint that all ranks have in common."""
        return {"figures": self._size, "steps": self._steps, "seconds": self._elapsed}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Restore the `state()` of a checkpoint; sums of other figures, as of other sources, are not continued."""
        if state["figures"] == self._size:
            self._steps, self._before = state["steps"], state["seconds"]

    def sums(self) -> list[float] | None:
        """This rank's sums since the last reading, for a checkpoint."""
        return None if self._sums is None else self._sums.tolist()

    def take_over(self, sums: Sequence[list[float] | None], device: torch.device | str) -> None:
        """Continue with the `sums()` of some ranks, together."""
        found = [
            torch.tensor(each, dtype=torch.float64) for each in sums if each is not None and len(each) == self._size
        ]
        self._sums = torch.stack(found).sum(0).to(device) if found else None

    @property
    def _size(self) -> int:
        return 8 + 7 * (1 + self.n_heads) + 7 + len(self.source_names)

    @property
    def _elapsed(self) -> float:
        return self._before + time.perf_counter() - self._since

    def leave_out(self, seconds: float) -> None:
        """Exclude time that was not spent on training."""
        self._since += seconds


def _pair_sums(pairs: Tensor) -> Tensor:
    """How many pairs can be compared, and the sums of their `PREFERENCE`: `(6,)` float64. pairs: `HeadLosses.pairs`."""
    known = pairs[pairs[:, 2:].isfinite().all(1)]
    won = (known[:, 2] > known[:, 3]).double().sum()
    return torch.cat([torch.stack([won.new_tensor(len(known))]), known.sum(0), won[None]])


def validation_figures(n_heads: int, sources: Sequence[str], preference: bool = False) -> list[str]:
    """Names of all figures that validation can give: over all held-out data, and over that of each of `sources`.

    preference: answers come in pairs.
    """
    predictors = ["main", *(f"head_{head}" for head in range(n_heads))]
    by_predictor = [f"{kind}_{name}" for kind in ("loss", "accuracy", "served_accuracy") for name in predictors]
    places = ["val", *(f"val/{source}" for source in sources)]
    of_pairs = (*PREFERENCE, "reward_margin") if preference else ()
    return [f"{place}/{figure}" for place in places for figure in ("loss", "served_accuracy", *by_predictor, *of_pairs)]
