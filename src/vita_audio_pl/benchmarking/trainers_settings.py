"""Settings of the trainers benchmark, separate from it so that `--help` is quick."""

from dataclasses import dataclass

from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError


@dataclass
class TrainersBenchmark:
    """Runs of the train command that are compared, at the same global batch and the same threads in all."""

    processes: list[int] = setting(
        [1, 2], "numbers of processes to run with; the first is the baseline", at_least=1, filled=True
    )
    trainer: str = setting("cpu_ddp", "trainer=... for runs of several processes; a run of one process uses cpu")
    threads: int = setting(2, "CPU threads of a run, divided among its processes", at_least=1)
    steps: int = setting(300, "optimiser steps of a run", at_least=30)
    save_every: int = setting(100, "steps between two checkpoints", at_least=1)
    rounds: int = setting(2, "repetitions of all runs, interleaved", at_least=1)
    overrides: list[str] = setting([], "more settings for all runs, such as model.hidden_size=256")

    def check(self) -> None:
        """Check values against each other.

        Raises:
            UserError: the value and what is allowed.
        """
        if any(self.threads % n for n in self.processes):
            raise UserError(f"trainers.processes={self.processes} must each divide trainers.threads={self.threads}")
