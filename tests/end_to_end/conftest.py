"""A finished demo in its smoke form, made once for all end-to-end tests."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.warm_python import warm_python

RUN = "demo-smoke-seed1"


@dataclass(frozen=True)
class Place:
    """A folder that commands run in."""

    folder: Path

    def run(self, *command: str) -> str:
        """What `python COMMAND` prints; fails with its error output where its status is not 0."""
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "WANDB_MODE": "offline"}
        result = subprocess.run(
            [warm_python(), *command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        return result.stdout


@pytest.fixture(scope="session")
def smoke_demo(tmp_path_factory: pytest.TempPathFactory, smoke_world: Path) -> Place:
    """`make demo SIZE=smoke` in a folder of its own; its first step finds the world that all tests share."""
    place = Place(tmp_path_factory.mktemp("demo"))
    shutil.copytree(smoke_world, place.folder / "data" / smoke_world.name)
    place.run("-m", "vita_audio_pl.demo", "size=smoke")
    return place
