"""Settings of `python -m vita_audio_pl.data`."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from vita_audio_pl.data.options import DataOptions, PreparePaths
from vita_audio_pl.errors import UserError

COMMANDS = ("info", "stats", "lint", "plan", "preview")


@dataclass
class DataToolsConfig:
    """Everything that `python -m vita_audio_pl.data` can be told."""

    paths: PreparePaths = field(default_factory=PreparePaths)
    command: str = "info"  # info, stats, lint, plan or preview
    source: str | None = None  # one prepared source; null = all in data.shards (plan, preview: those of the mixture)
    data: DataOptions = field(default_factory=DataOptions)
    tokenizer: str | None = None  # folder of the tokenizer; null = `tokenizer` beside the shards
    text_audio_interval_ratio: list[int] = MISSING
    decode_pattern: list[int] = MISSING
    n_heads: int = 10
    lead_in: list[int] = field(default_factory=list)  # codes put before an answer's audio
    text_weight: float = 1.0
    audio_weight: float = 1.0
    row_length: int = 256  # tokens in a row
    rows: int = 8  # rows of a step, and of the preview
    planned_rows: int = 1000  # rows whose shares `plan` counts
    seed: int = 0
    quarantine: bool = False  # lint: leave broken samples out of training from now on
    output: str = "preview.html"

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: says which, and what is allowed.
        """
        if self.command not in COMMANDS:
            raise UserError(f"there is no command '{self.command}'; choose one of {', '.join(COMMANDS)}")
        if min(self.row_length, self.rows, self.planned_rows) < 1:
            raise UserError("row_length, rows and planned_rows must be at least 1")

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is."""
        return Path(self.tokenizer) if self.tokenizer else Path(self.data.shards).parent / "tokenizer"
