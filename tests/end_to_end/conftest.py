"""A finished demo in its smoke form, made once for all end-to-end tests of all workers."""

import os
import shutil
import subprocess
from collections.abc import Callable
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


FEWER_STEPS = (
    "per_stage.align.steps=160", "per_stage.mtp1.steps=10", "per_stage.mtp10.steps=30", "per_stage.sft.steps=10",
)  # fmt: skip


@pytest.fixture(scope="session")
def smoke_demo(made_once: Callable[[str, Callable[[Path], None]], Path], smoke_world: Path) -> Place:
    """`make demo SIZE=smoke` with fewer steps, in a folder of its own, only to be read."""

    def make(folder: Path) -> None:
        shutil.copytree(smoke_world, folder / "data" / smoke_world.name)  # its first step finds it there
        Place(folder).run("-m", "vita_audio_pl.demo", "size=smoke", f"train={list(FEWER_STEPS)}")

    return Place(made_once("demo", make))


@pytest.fixture
def copied_demo(smoke_demo: Place, tmp_path: Path) -> Place:
    """The finished demo, for a test that goes on from it."""
    shutil.copytree(smoke_demo.folder, tmp_path / "demo", symlinks=True)
    return Place(tmp_path / "demo")


@pytest.fixture
def place(smoke_world: Path, tmp_path: Path) -> Place:
    """An empty folder with the smallest spoken world, already prepared and only to be read."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / smoke_world.name).symlink_to(smoke_world)
    return Place(tmp_path)
