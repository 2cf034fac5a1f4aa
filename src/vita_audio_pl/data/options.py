"""Settings of the training data: the `data` group of the configuration."""

from dataclasses import dataclass

from vita_audio_pl.errors import UserError


@dataclass
class DataOptions:
    """Which prepared data a run reads, and how."""

    name: str = "spoken_world"
    shards: str = "data/spoken_world/shards"  # folder or URL with one folder per prepared source
    mixture: str = "small_1"  # file of data_recipes/mixtures without .yaml, or a path to a .yaml
    temperature: float | None = None  # null = the mixture's; above 1 levels the sources' sizes
    overlong: str = "skip"  # samples longer than a row: `skip`, or `cut` answers of plain text; both are counted
    window: int = 65_536  # samples packed and shuffled together
    workers: int = 2  # processes that read and render; 0 = in the training process
    prefetch: int = 4  # batches each worker works ahead
    cache: str | None = None  # folder on this node for shards that are read from a URL
    max_broken: float = 0.01  # share of samples that may turn out unreadable before the run stops
    adopt_changes: bool = False  # resume with another mixture than the checkpoint's, from the next window on
    validation: str = "dev"  # held-out sources are called `<source>.<this>`; "" = no validation
    validation_rows: int = 16  # packed rows of each held-out source

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: says which, and what is allowed.
        """
        checks = (
            (self.overlong in ("skip", "cut"), f"data.overlong is '{self.overlong}': choose skip or cut"),
            (self.window >= 1, f"data.window is {self.window}: it must be at least 1"),
            (self.workers >= 0, f"data.workers is {self.workers}: it cannot be negative"),
            (self.prefetch >= 1, f"data.prefetch is {self.prefetch}: it must be at least 1"),
            (self.validation_rows >= 1, f"data.validation_rows is {self.validation_rows}: it must be at least 1"),
            (0 <= self.max_broken <= 1, f"data.max_broken is {self.max_broken}: it must lie in [0, 1]"),
            (
                self.temperature is None or self.temperature > 0,
                f"data.temperature is {self.temperature}: it must be positive",
            ),
        )
        for holds, sentence in checks:
            if not holds:
                raise UserError(sentence)
