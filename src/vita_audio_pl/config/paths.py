"""The folders that every command knows."""

from dataclasses import dataclass

from vita_audio_pl.config.fields import setting


@dataclass
class PathsConfig:
    """Folders, relative to the current directory unless absolute."""

    data: str = setting("data", "folder of prepared data", common=True)
    runs: str = setting("runs", "folder of runs", common=True)
