"""Settings of `python -m vita_audio_pl.data`."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.fields import setting
from vita_audio_pl.data.options import DataOptions

COMMANDS = ("info", "stats", "lint", "plan", "preview")


@dataclass
class DataToolsConfig(CommandConfig):
    """Everything that `python -m vita_audio_pl.data` can be told."""

    command: str = setting("info", "info, stats, lint, plan or preview", choices=COMMANDS, common=True)
    source: str | None = setting(
        None, "one prepared source; null = all in data.shards (plan, preview: those of the mixture)", common=True
    )
    data: DataOptions = field(default_factory=DataOptions)
    tokenizer: str | None = setting(None, "folder of the tokenizer; null = `tokenizer` beside the shards")
    text_audio_interval_ratio: list[int] = setting(MISSING, "as in training", at_least=1)
    decode_pattern: list[int] = setting(MISSING, "as in training", at_least=0)
    n_heads: int = setting(10, "", at_least=0)
    lead_in: list[int] = setting([], "codes put before an answer's audio", at_least=0)
    text_weight: float = setting(1.0, "", at_least=0)
    audio_weight: float = setting(1.0, "", at_least=0)
    row_length: int = setting(256, "tokens in a row", at_least=16, common=True)
    rows: int = setting(8, "rows of a step, and of the preview", at_least=1, common=True)
    planned_rows: int = setting(1000, "rows whose shares `plan` counts", at_least=1)
    seed: int = setting(0, "", at_least=0)
    quarantine: bool = setting(False, "lint: leave broken samples out of training from now on", common=True)
    output: str = setting("preview.html", "page that preview writes", common=True)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is."""
        return Path(self.tokenizer) if self.tokenizer else self.data.beside("tokenizer")
