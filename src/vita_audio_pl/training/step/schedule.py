"""Learning-rate schedule as a pure function of the optimiser step, so that it needs no state to resume."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vita_audio_pl.config.component import Component
from vita_audio_pl.config.fields import setting


@dataclass
class WarmupCosine(Component):
    """Warm-up to the peak rate, then a cosine."""

    warmup_share: float = setting(0.03, "warm-up, as a share of all steps", at_least=0, below=1)
    warmup: str = setting("linear", "linear, or log: DeepSpeed's logarithmic warm-up", choices=("linear", "log"))
    min_rate_share: float = setting(0.1, "final learning rate, as a share of the peak", at_least=0, at_most=1)

    def build(self, steps: int) -> Callable[[int], float]:
        """Factor on the peak rate for optimiser step 0, 1, .. of `steps`."""
        return learning_rate_factor(steps, round(steps * self.warmup_share), self.warmup, self.min_rate_share)


def learning_rate_factor(
    steps: int, warmup_steps: int, warmup: str = "linear", min_share: float = 0.1
) -> Callable[[int], float]:
    """Factor on the peak rate for optimiser step 0, 1, ..: warm-up to 1, then a cosine down to `min_share`.

    Args:
        steps: optimiser steps of the stage.
        warmup_steps: optimiser steps of the warm-up.
        warmup: `linear` rises evenly and never starts at 0; `log` is DeepSpeed's ramp `log(step + 1) /
            log(warmup_steps)`, which starts at 0 and rises fast.
        min_share: final rate, as a share of the peak.
    """

    def climbing(step: int) -> float:
        if warmup == "log":
            return math.log(step + 1) / math.log(max(2, warmup_steps))
        return (step + 1) / warmup_steps

    def factor(step: int) -> float:
        if step < warmup_steps:
            return min(1.0, climbing(step))
        progress = min(1.0, (step - warmup_steps + 1) / max(1, steps - warmup_steps))
        return min_share + (1 - min_share) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
