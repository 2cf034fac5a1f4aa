"""Makes every file of an `experiments/` folder an option of the Hydra group `experiment`.

A Hydra group is named after its folder, and `experiments` is the name that a reader looks for. A config source of
our own maps the one to the other, for the folder that ships with the package and for the one in the current directory.
"""

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin

from vita_audio_pl.assets import asset_dir

GROUP = "experiment"


class ExperimentsSource(FileConfigSource):
    """Config source `experiments://<folder>` that shows `<folder>/*.yaml` as the group `experiment`."""

    @staticmethod
    def scheme() -> str:
        return "experiments"

    def load_config(self, config_path: str) -> ConfigResult:
        return super().load_config(self._inside(config_path) or config_path)

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        inside = self._inside(config_path)
        return config_path == "" or (inside is not None and super().is_group(inside))

    def is_config(self, config_path: str) -> bool:
        inside = self._inside(config_path)
        return bool(inside) and super().is_config(str(inside))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [GROUP] if results_filter in (None, ObjectType.GROUP) else []
        inside = self._inside(config_path)
        return [] if inside is None else super().list(inside, results_filter)

    def _inside(self, config_path: str) -> str | None:
        """Path below the folder, or None where `config_path` is outside the group."""
        if config_path == GROUP:
            return ""
        return config_path[len(GROUP) + 1 :] if config_path.startswith(f"{GROUP}/") else None


class ExperimentsSearchPath(SearchPathPlugin):
    """Adds the packaged `experiments/` and, where it is another, the current directory's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        packaged = asset_dir("experiments").resolve()
        local = Path("experiments").resolve()
        for provider, folder in (("local-experiments", local), ("experiments", packaged)):
            if folder.is_dir() and (folder != packaged or provider == "experiments"):
                search_path.append(provider, f"{ExperimentsSource.scheme()}://{folder}")
