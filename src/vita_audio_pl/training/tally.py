"""Running sums between two lines of the log, kept on the device so that no step waits for a figure."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from vita_audio_pl.models.losses import HeadLosses
from vita_audio_pl.packed import PackedBatch


class Tally:
    """Adds up losses, hits and tokens of batches; `read` averages them and starts again.

    Args:
        n_heads: MCTP heads of the model.
        source_names: name of each data source, by its number in `PackedBatch.sources`.
    """

    def __init__(self, n_heads: int, source_names: Sequence[str] = ()) -> None:
        self.n_heads, self.source_names = n_heads, tuple(source_names)
        self._sums: Tensor | None = None
        self._steps = 0
        self._since = time.perf_counter()

    def add(self, losses: HeadLosses, batch: PackedBatch, *, ends_step: bool = True) -> None:
        """Count one batch; `ends_step` says that its optimiser step is complete."""
        tokens = batch.document_ids >= 0
        per_source = torch.bincount(batch.sources[tokens].to(torch.int64), minlength=len(self.source_names))
        figures = torch.cat(
            [
                losses.total.detach().reshape(1).double(),
                losses.sums.double(),
                losses.counts.double(),
                losses.correct.double(),
                tokens.sum().reshape(1).double(),
                torch.tensor(
                    [batch.input_ids.numel(), sum(map(len, batch.names))], dtype=torch.float64, device=tokens.device
                ),
                per_source[: len(self.source_names)].double(),
            ]
        )
        self._sums = figures if self._sums is None else self._sums + figures
        self._steps += ends_step

    def read(self, prefix: str, reduce: bool) -> dict[str, float]:
        """Figures since the last reading, named `<prefix>/...`; ranks are summed where `reduce`.

        `<prefix>/loss` is the objective per step, divisor and weights included; `loss_main`, `loss_head_<k>` and the
        accuracies are means over the labels that the predictor was scored on.
        """
        if self._sums is None:
            return {}
        sums = self._sums
        if reduce:
            torch.distributed.all_reduce(sums)
        predictors = 1 + self.n_heads
        values = iter(sums.tolist())
        total = next(values)
        loss, counts, correct = ([next(values) for _ in range(predictors)] for _ in range(3))
        tokens, slots, samples = next(values), next(values), next(values)
        seconds = max(time.perf_counter() - self._since, 1e-9)
        figures = {f"{prefix}/loss": total / max(1, self._steps)}
        for predictor in range(predictors):
            if counts[predictor]:
                name = "main" if predictor == 0 else f"head_{predictor - 1}"
                figures[f"{prefix}/loss_{name}"] = loss[predictor] / counts[predictor]
                figures[f"{prefix}/accuracy_{name}"] = correct[predictor] / counts[predictor]
        if prefix == "train":
            figures |= {
                "tokens_per_second": tokens / seconds,
                "samples_per_second": samples / seconds,
                "padding_share": 1 - tokens / max(1.0, slots),
            }
            for name, count in zip(self.source_names, values, strict=True):
                figures[f"source/{name}"] = count / max(1.0, tokens)
        self.restart()
        return figures

    def restart(self) -> None:
        """Forget everything counted and set the clock to now."""
        self._sums, self._steps, self._since = None, 0, time.perf_counter()
