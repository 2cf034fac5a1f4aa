"""Settings that every command has."""

from dataclasses import dataclass, field

from vita_audio_pl.config.fields import setting


@dataclass
class PathsConfig:
    """Folders, relative to the current directory unless absolute."""

    data: str = setting("data", "folder of prepared data", common=True)
    runs: str = setting("runs", "folder of runs", common=True)


@dataclass
class CommandConfig:
    """Base of every command's settings."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    plugins: list[str] = setting([], "packages of your own to import, which register codecs and readers")
