"""A signal, or a kill, while the model folder is being written: the status is as documented, and the model has the same bits."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_resumed_log import log_of
from toy_process import ENVIRONMENT, HERE

from tests.patience import PATIENCE, wait_until
from tests.warm_python import warm_python
from vita_audio_pl.processes import SAME_PRESS_SECONDS
from vita_audio_pl.training.run_folder.layout import StageFolder

STAGE = ("stage=align", "run_name=toy", "callbacks.samples.every_steps=0", "callbacks.validate_every=3")
TWO_RANKS = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.rows_per_device=1")


class Stage:
    """A stage that is trained in processes which wait in their hand-over."""

    def __init__(self, folder: Path, settings: tuple[str, ...]) -> None:
        folder.mkdir()
        self.folder, self.settings, self.starts = folder, settings, 0
        self.stage = StageFolder(folder / "runs" / "toy" / "align")
        self.process: subprocess.Popen[bytes] | None = None

    def reach_the_hand_over(self) -> None:
        """Start it, until the model's weights are written and the model has no name yet."""
        writing = self.folder / "writing"
        writing.unlink(missing_ok=True)
        (self.folder / "go").unlink(missing_ok=True)
        self.starts += 1
        command = [warm_python(), str(HERE / "held_hand_over.py"), str(self.folder), *STAGE, *self.settings]
        with self.told.open("wb") as told:
            process = subprocess.Popen(
                command, env=ENVIRONMENT, cwd=HERE, stdout=told, stderr=told, start_new_session=True
            )
        wait_until(lambda: writing.exists() or process.poll() is not None, "the hand-over")
        assert process.poll() is None, self.told.read_text()[-3000:]
        assert (Path(writing.read_text()) / "model.safetensors").stat().st_size > 0 and not self.stage.model.exists()
        self.process = process

    @property
    def told(self) -> Path:
        return self.folder / f"told-{self.starts}"

    def send(self, number: int, says: str) -> None:
        """To the first rank, which passes it on where it leaves."""
        assert self.process is not None
        self.process.send_signal(number)
        wait_until(lambda: says in self.told.read_text(), says)

    def go_on(self) -> int:
        (self.folder / "go").touch()
        return self.end()

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def result(self) -> tuple[bytes, list[dict[str, str]]]:
        """Weights, and the log."""
        assert self.stage.finished and not list(self.folder.rglob("*.tmp")), [*self.folder.rglob("*.tmp")]
        return (self.stage.model / "model.safetensors").read_bytes(), log_of(self.stage)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [pytest.param((), marks=pytest.mark.ci, id="one"), pytest.param(("trainer=ddp", *TWO_RANKS), id="two-ranks")],
)
def test_what_comes_in_the_hand_over_changes_no_bit(settings, tmp_path):
    whole = Stage(tmp_path / "whole", settings)
    whole.reach_the_hand_over()
    assert whole.go_on() == 0

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):  # the stage is handed over all the same
        stage = Stage(tmp_path / number.name, settings)
        stage.reach_the_hand_over()
        stage.send(number, "the stage is handed over")
        assert stage.go_on() == 0
        assert stage.result() == whole.result()

    stage = Stage(tmp_path / "killed", settings)
    stage.reach_the_hand_over()
    os.killpg(stage.process.pid, signal.SIGKILL)
    assert stage.end() == -signal.SIGKILL
    # the hand-over is all that is left of the stage, and a signal there ends its process at once
    for number, status in ((signal.SIGUSR1, 75), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        stage.reach_the_hand_over()
        assert "resuming from step-00000006" in stage.told.read_text()
        stage.send(number, "stopped in")
        assert stage.end() == status and not stage.stage.model.exists()
    stage.reach_the_hand_over()
    assert stage.go_on() == 0
    assert stage.result() == whole.result()

    stage = Stage(tmp_path / "pressed-twice", settings)
    stage.reach_the_hand_over()
    stage.send(signal.SIGINT, "one more ends it at once")
    time.sleep(SAME_PRESS_SECONDS + 0.5)  # until then it would be taken for the same press
    stage.process.send_signal(signal.SIGINT)
    assert stage.end() == 130 and not stage.stage.model.exists()
    stage.reach_the_hand_over()
    assert stage.go_on() == 0
    assert stage.result() == whole.result()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_a_run_that_is_killed_in_the_hand_over_validates_and_hands_over_again(engine, tmp_path):
    """The last validation is run again, before a step would be, and gives the same figures."""
    whole, killed = (Stage(tmp_path / name, (f"trainer={engine}", *TWO_RANKS)) for name in ("whole", "killed"))
    whole.reach_the_hand_over()
    assert whole.go_on() == 0
    killed.reach_the_hand_over()
    os.killpg(killed.process.pid, signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    killed.reach_the_hand_over()
    assert killed.go_on() == 0
    assert killed.result() == whole.result() and killed.result()[1][-1]["val/loss"]
