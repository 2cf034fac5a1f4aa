"""`force=true` begins a stage anew once per invocation, whoever restarts its job, and never removes what is not ours."""

import itertools
import os
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.owned import atomic_folder
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.run_folder.manifest import MANIFEST
from vita_audio_pl.training.stage.invocation import INVOCATION, invoked

SCHEDULERS = ("SLURM_JOB_ID", "SLURM_STEP_ID", "KUBERNETES_SERVICE_HOST", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", INVOCATION,
              "TORCHELASTIC_USE_AGENT_STORE", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", "HOSTNAME")  # fmt: skip


class Died(Exception):
    """A killed process, for which nothing is tidied up."""


def start(folder: StageFolder, dies: bool = False, force: bool = True, **settings: int) -> str:
    """What a start of a stage does with its folder: begins `anew`, `goes on`, or finds it `finished`."""
    identity = {"seed": 0, **settings}
    with invoked(force) as invocation:
        if force:
            invocation.forced.append(folder)
        if not folder.starts_over(identity, force, invocation.id) and folder.model.exists():
            folder.check(identity)
            return "finished"
        folder.open(identity, force, invocation.id)
        checkpoint = folder.checkpoints / "step-00000001.ckpt/state.json"
        begun = "goes on" if checkpoint.exists() else "anew"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text("{}")
        if dies:
            raise Died
        with atomic_folder(folder.model, "trained model") as aside:
            (aside / MANIFEST).write_text("{}")
        return begun


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageFolder:
    for name in SCHEDULERS:
        monkeypatch.delenv(name, raising=False)
    return StageFolder(tmp_path / "runs/toy/align")


def killed(folder: StageFolder, **settings: int) -> None:
    with pytest.raises(Died):
        start(folder, dies=True, **settings)


def test_by_hand_it_begins_anew_each_time_but_what_was_cut_off_goes_on(folder):
    assert [start(folder) for _ in range(3)] == ["anew"] * 3  # finished each time
    killed(folder)
    assert start(folder) == "goes on" and start(folder) == "anew"
    killed(folder)
    killed(folder)
    assert start(folder, force=False) == "goes on" and start(folder, force=False) == "finished"
    assert start(folder) == "anew"
    killed(folder)
    assert start(folder, seed=1) == "anew"  # other settings are another run


def job(name: str, restart: int) -> dict[str, str]:
    """What the environment of a job's start says."""
    return {
        "slurm": {"SLURM_JOB_ID": name, "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": str(restart)},
        "kubernetes, a pod a start": {
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "HOSTNAME": f"job{name}-{'abcde'[restart]}x2yz",
        },
        "kubernetes, several pods": {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "MASTER_ADDR": f"job{name}-0.service"},
        "kubernetes, told": {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "same", INVOCATION: f"uid-{name}"},
        "torchrun": {"TORCHELASTIC_RUN_ID": f"run-{name}"},
    }


@pytest.mark.parametrize("scheduler", job("1", 0))
def test_a_job_that_is_started_again_goes_on_and_the_next_job_begins_anew(scheduler, folder, monkeypatch):
    def enter(name: str, restart: int) -> None:
        for key, value in job(name, restart)[scheduler].items():
            monkeypatch.setenv(key, value)

    for name in ("1", "2"):
        enter(name, 0)
        killed(folder)
        enter(name, 1)
        killed(folder)
        enter(name, 2)
        assert start(folder) == "goes on"
        enter(name, 3)  # another rank has failed at the very end
        assert start(folder) == "finished"
        with pytest.raises(UserError, match="seed is 0 there and 1 here"):
            start(folder, seed=1)  # a job's settings do not change: its data has, and a month of work stays
    assert (folder.checkpoints / "step-00000001.ckpt").is_dir()


def test_torchruns_agents_know_their_ranks_from_those_of_the_next_torchrun(folder, monkeypatch):
    for _ in range(2):
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
        for name, value in (("RUN_ID", "none"), ("USE_AGENT_STORE", "True")):
            monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(store.port))
        killed(folder)
        assert [start(folder), start(folder)] == ["goes on", "finished"]
        del store


def test_a_chain_is_one_invocation(folder):
    """Started again by a shell's loop, with nothing to tell it from a new one: finished stages of it stay."""
    first, second = folder, StageFolder(folder.root.with_name("mtp1"))

    def chain(dies: bool) -> list[str]:
        with invoked(True) as invocation:
            invocation.forced.extend([first, second])
            return [start(first), start(second, dies)]

    for stage in (first, second):
        start(stage)
    with pytest.raises(Died):
        chain(dies=True)
    assert chain(dies=False) == ["finished", "goes on"]
    assert chain(dies=False) == ["anew", "anew"]


@pytest.mark.parametrize("dies", [False, True])
def test_ranks_decide_alike_however_late_they_look(dies, folder, monkeypatch):
    """Rank 0 removes what was there while the others still ask whether there is something to do."""
    monkeypatch.setenv(INVOCATION, "one")
    start(folder) if not dies else killed(folder)
    monkeypatch.setenv(INVOCATION, "two")
    identity = {"seed": int(dies)}  # what died goes on, unless its settings are others
    answers: list[bool] = []
    steps = itertools.count()

    def watched(act):
        def then_look(*arguments, **options):
            result = act(*arguments, **options)
            next(steps)
            trains = folder.starts_over(identity, True, "two") or not folder.model.exists()
            answers.append(trains)
            return result

        return then_look

    answers.append(folder.starts_over(identity, True, "two") or not folder.model.exists())
    for name in ("replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    killed(folder, **identity)
    monkeypatch.undo()
    assert next(steps) > 5 and all(answers)


def test_what_this_program_did_not_write_is_not_taken(folder):
    start(folder)
    for name in ("notes.md", "checkpoints/mine/weights.bin", "checkpoints/step-00000001.ckpt/notes", "model/README.md"):
        path = folder.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("precious")
        with pytest.raises(UserError, match=f"{folder.root} holds .*which this program did not write.*move it away"):
            start(folder)
        assert path.read_text() == "precious" and folder.model.exists()
        path.unlink()
        if path.parent.name == "mine":
            path.parent.rmdir()
    assert start(folder) == "anew"
    other = StageFolder(folder.root.with_name("photos"))
    other.root.mkdir()
    (other.root / "cat.jpg").write_text("precious")
    with pytest.raises(UserError, match="is not a training stage that this program made"):
        start(other)
    assert (other.root / "cat.jpg").exists()
