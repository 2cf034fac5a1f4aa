"""What the trainers benchmark measures: numbers only, so that a command shows its settings at once."""

from dataclasses import dataclass, field

from vita_audio_pl.errors import UserError


@dataclass
class TrainersBenchmark:
    """Runs of the train command that are compared, at the same global batch and the same threads in all.

    Attributes:
        processes: of each run; the first is what the others are compared with.
        trainer: option of the group `trainer` for runs of several processes; one process takes `cpu`.
        threads: of a run, shared out among its processes.
        steps: optimiser steps of a run; save_every: of these, between two checkpoints.
        rounds: times that all runs are done, in turn.
        overrides: further settings of all runs, as `model.hidden_size=256`.
    """

    processes: list[int] = field(default_factory=lambda: [1, 2])
    trainer: str = "cpu_ddp"
    threads: int = 2
    steps: int = 300
    save_every: int = 100
    rounds: int = 2
    overrides: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: says which, and what is allowed.
        """
        if not self.processes or any(n < 1 or self.threads % n for n in self.processes):
            raise UserError(f"trainers.processes={self.processes} must each divide trainers.threads={self.threads}")
        if self.steps < 30 or self.rounds < 1 or self.save_every < 1:
            raise UserError("trainers.steps must be at least 30; trainers.rounds and trainers.save_every at least 1")
