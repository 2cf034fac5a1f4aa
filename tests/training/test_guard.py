"""Bad steps, signals, full disks and hung ranks: what a run does about them."""

import csv
import errno
import json
import os
import re
import signal
import threading
import time

import pytest
import torch
import toy
from poison import poison
from safetensors.torch import load_file

from tests.patience import wait_until
from vita_audio_pl import leaving
from vita_audio_pl.errors import UserError
from vita_audio_pl.processes import announce_stop, requeue_on_signal
from vita_audio_pl.storage.owned import Owned
from vita_audio_pl.training.callback_settings import GuardConfig
from vita_audio_pl.training.callbacks.guard import StepGuard
from vita_audio_pl.training.callbacks.preemption import Preemption
from vita_audio_pl.training.callbacks.watchdog import Watchdog
from vita_audio_pl.training.checkpoints import parts
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.run_folder.layout import STAGE, StageFolder
from vita_audio_pl.training.stage import train
from vita_audio_pl.training.step.module import SpeechLMModule
from vita_audio_pl.training.tracking.lineage import kept_id
from vita_audio_pl.training.tracking.metrics_csv import MetricsCsv


def bad_steps(folder: StageFolder) -> list[dict]:
    return [json.loads(line) for line in (folder.root / "bad_steps.rank-0.jsonl").read_text().splitlines()]


def test_a_step_that_is_not_finite_changes_nothing_and_its_rows_are_named(trained, monkeypatch, tmp_path):
    poison({2}, monkeypatch.setattr)
    folder = trained("align", "callbacks.save_every=1", "callbacks.keep_last=9")
    [record] = bad_steps(folder)
    assert record["step"] == 3 and set(record["rows"]) == {"toy/a", "toy/b"}

    names = ("step-00000002.ckpt", "step-00000003.doubt", "step-00000004.ckpt")
    before, after, later = (load_file(folder.checkpoints / name / "part-00000.safetensors") for name in names)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["weight/model.norm.weight"], later["weight/model.norm.weight"])


def test_several_bad_steps_in_a_row_go_back_to_the_checkpoint_and_the_data_goes_on(trained, monkeypatch, capsys):
    poison({2, 3, 4}, monkeypatch.setattr)
    folder = trained("align", "callbacks.save_every=2", "callbacks.guard.bad_steps=3")
    assert "restored weights and moments of step-00000002.ckpt" in capsys.readouterr().out
    assert [record["step"] for record in bad_steps(folder)] == [3, 4, 5]
    assert folder.finished


def test_what_does_not_get_better_stops_and_names_the_rows(trained, monkeypatch):
    poison(set(range(1, 60)), monkeypatch.setattr)
    with pytest.raises(UserError, match="returns to a checkpoint did not help.*toy/a"):
        trained("align", "stage.steps=60", "callbacks.save_every=1", "callbacks.guard.bad_steps=2")


def test_a_spike_is_told_from_noise():
    guard = StepGuard(GuardConfig(spike_factor=5.0), Engine(toy.toy_config("runs").trainer), None, None)
    guard._seen, guard._mean_log_norm = 100, 0.0
    assert guard.skip_reason(4.0) is None
    assert "over 5 times the usual 1" in guard.skip_reason(6.0)
    assert "not" not in (guard.skip_reason(1.0) or "") and guard.skip_reason(float("inf")) == "the gradient norm is inf"


def test_a_full_disk_stops_cleanly_and_keeps_the_last_good_checkpoint(trained, monkeypatch, tmp_path):
    save = parts.write_tensors
    written = []

    def full(path, *what):
        if len(written) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return save(path, *what)

    monkeypatch.setattr(parts, "write_tensors", full)
    with pytest.raises(UserError, match="the disk is full; the last good one is .*step-00000002.ckpt"):
        trained("align", "callbacks.save_every=1", "stage.steps=20")
    folder = tmp_path / "runs" / "toy" / "align" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000001.ckpt", "step-00000002.ckpt"]
    monkeypatch.undo()
    assert trained("align", "callbacks.save_every=1", "stage.steps=20").finished


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_at_the_next_step_and_the_same_command_goes_on(trained, tmp_path, number, status, monkeypatch):
    step = SpeechLMModule.training_step

    def signalled(self, batch, batch_idx):
        if self.trainer.global_step == 3:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SpeechLMModule, "training_step", signalled)
        with pytest.raises(SystemExit) as end:
            trained("align", "callbacks.save_every=100")
    assert end.value.code == status
    folder = StageFolder(tmp_path / "runs" / "toy" / "align")
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000004.ckpt"]
    assert trained("align", "callbacks.save_every=100").finished
    assert [row["step"] for row in csv.DictReader((folder.root / "metrics.csv").open())] == [
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
    ]


@pytest.fixture
def requeued(tmp_path, monkeypatch):
    """What a SLURM job is told by its processes, line by line; SLURM says that it is in the state of the file `state`."""
    told = tmp_path / "requeued"
    (tmp_path / "state").write_text("JobState=RUNNING Reason=None")
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\n[ $1 = requeue ] && echo $@ >> {told} || cat {tmp_path}/state\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(leaving, "_requeued", False)
    return lambda: told.read_text() if told.exists() else ""


@pytest.mark.parametrize(
    ("number", "requeue", "says"),
    [(signal.SIGTERM, "true", "requeue 77\n"), (signal.SIGTERM, "false", ""), (signal.SIGINT, "true", "")],
)
def test_a_job_that_was_told_to_leave_is_requeued_once(trained, requeued, monkeypatch, number, requeue, says):
    monkeypatch.setattr(SpeechLMModule, "on_train_batch_end", lambda *_: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as end, requeue_on_signal(requeue == "true"):
        trained("align", f"callbacks.requeue={requeue}")
    assert requeued() == says and end.value.code == (130 if number == signal.SIGINT else 75)


def test_a_signal_before_the_first_step_requeues_too(requeued, tmp_path):
    stage_of_a_chain = UserError("stage 'align' was stopped", 143)
    (tmp_path / "state").write_text("JobState=RUNNING Reason=None PreemptTime=2026-11-29T04:25:42")
    for end, says in ((SystemExit(2), ""), (stage_of_a_chain, "requeue 77\n"), (SystemExit(75), "requeue 77\n")):
        with pytest.raises(type(end)), requeue_on_signal(True):
            raise end
        assert requeued() == says


def test_what_a_library_makes_of_a_signal_requeues_too(requeued):
    with pytest.raises(SystemExit) as end, announce_stop(), requeue_on_signal(True):
        try:
            signal.raise_signal(signal.SIGUSR1)
        except SystemExit as stop:
            raise ImportError("could not be imported") from stop
    assert end.value.code == 75 and requeued() == "requeue 77\n"


@pytest.mark.parametrize(
    ("state", "agreed", "says"),  # as SLURM 22.05 has them
    [
        ("SIGNALING Reason=None", True, "requeue 77\n"),  # it has just sent one
        ("COMPLETING Reason=None", True, ""),  # scancel
        ("COMPLETING Reason=TimeLimit", False, "requeue 77\n"),
        ("RUNNING Reason=None PreemptTime=None", False, ""),  # srun ends a task, since another has failed
        ("RUNNING Reason=None PreemptTime=2026-11-29T04:25:42", False, "requeue 77\n"),  # in its grace period
    ],
)
def test_a_job_that_slurm_is_ending_is_left_to_it_unless_its_time_is_over(requeued, tmp_path, state, agreed, says):
    (tmp_path / "state").write_text(f"JobId=77 JobState={state} Dependency=(null)")
    leaving.requeue_job(agreed)
    assert requeued() == says


def test_a_rank_that_the_others_have_left_ends_with_the_signals_status(trained, requeued, monkeypatch):
    def signalled(reason):
        def alone(*_):
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError(reason)

        monkeypatch.setattr(Preemption, "_agreed", alone)
        with announce_stop():
            trained("align")

    with pytest.raises(SystemExit) as end:
        signalled("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711")
    assert end.value.code == 143 and requeued() == ""
    with pytest.raises(RuntimeError, match="no memory"):  # what went wrong here is not taken for that
        signalled("no memory for the copy")


def test_a_validation_is_cut_and_runs_again_on_resuming(trained, monkeypatch, tmp_path):
    batches = []

    def signalled(self, *_):
        batches.append(self.trainer.global_step)
        os.kill(os.getpid(), signal.SIGUSR1)

    settings = ("callbacks.save_every=100", "callbacks.validate_every=2", "callbacks.keep_best_by=val/loss")
    with monkeypatch.context() as patch:
        patch.setattr(SpeechLMModule, "on_validation_batch_end", signalled)
        with pytest.raises(SystemExit) as end:
            trained("align", *settings)
    assert end.value.code == 75 and batches == [2]
    log = StageFolder(tmp_path / "runs" / "toy" / "align").root / "metrics.csv"
    assert "val/loss" not in log.read_text()
    trained("align", *settings)
    rows = {row["step"]: row["val/loss"] for row in csv.DictReader(log.open())}
    assert rows["2"] and rows["4"] and rows["6"]


def test_a_signal_after_the_last_step_lets_the_stage_be_handed_over(trained, monkeypatch, capfd):
    hand_over = train.hand_over

    def signalled(*given):
        before = signal.getsignal(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert before.__self__.__class__ is Preemption  # Lightning's own would run a collective
        hand_over(*given)

    monkeypatch.setattr(train, "hand_over", signalled)
    usual = signal.getsignal(signal.SIGTERM)
    assert trained("align").finished
    assert "SIGTERM after step 6: the stage is handed over" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == usual


def test_steps_are_looked_into(trained, capsys):
    folder = trained("align", "callbacks.profile.at_step=3", "callbacks.profile.steps=2", "trainer.rows_per_device=2")
    place = folder.root / "profile/step-000003.rank-0"
    figures = json.loads(place.with_name(place.name + ".times.json").read_text())
    phases = figures["phases"]
    assert set(phases) >= {"data", "forward and loss", "backward and reduce", "clip", "optimiser", "save", "rest"}
    assert all(seconds >= 0 for seconds in phases.values())
    assert sum(phases.values()) == pytest.approx(figures["seconds"], rel=0.05)
    trace = json.loads(place.with_name(place.name + ".trace.json").read_text())
    steps = [event for event in trace["traceEvents"] if str(event.get("name", "")).startswith("Optimizer.step")]
    assert len(steps) == 2 and "profile of 2 steps" in capsys.readouterr().out
    assert Owned.open(folder.root, STAGE).foreign() == []


def test_a_wandb_id_is_one_run_s_and_kept(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    first = kept_id(one, "a/b-align")
    assert first.startswith("a-b-align-") and kept_id(one, "a/b-align") == first != kept_id(other, "a/b-align")
    (one / "wandb_id.json").write_text("{")
    assert kept_id(one, "a/b-align") != first


def test_a_step_of_the_log_is_one_more_line(tmp_path):
    log = MetricsCsv(tmp_path)
    log.log_metrics({"train/loss": 1.0, "lr": 0.1}, 1)
    file = (tmp_path / "metrics.csv").stat().st_ino
    for step in range(2, 6):
        log.log_metrics({"lr": 0.1}, step)
    assert (tmp_path / "metrics.csv").stat().st_ino == file  # appended to
    log.log_metrics({"val/loss": 2.0}, 5)
    log.log_metrics({"val/loss": 2.0, "train/loss": 3.0}, 6)
    log.cut_after(5)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[-1] == {"step": "5", "train/loss": "", "val/loss": "2", "lr": "0.1"}
    again = MetricsCsv(tmp_path)
    again.log_metrics({"lr": 0.2}, 7)
    assert [row["lr"] for row in csv.DictReader((tmp_path / "metrics.csv").open())] == ["0.1"] * 5 + ["0.2"]


def test_the_watchdog_names_the_rank_that_is_behind(tmp_path):
    class Trainer:
        global_rank, world_size, global_step = 0, 3, 12

    now = time.time()
    dog = Watchdog(tmp_path, patience=0.2)
    for rank, (step, doing) in enumerate([(12, "computing"), (11, "waiting for data")]):
        beat = {"step": step, "doing": doing, "since": now - 60}
        (tmp_path / f"heartbeat.rank-{rank}.json").write_text(json.dumps(beat))
    dog._rank, dog._ranks = 0, 3
    assert re.search(r"rank 1 has been waiting for data for \d+ s after step 11, rank 0", dog.report())
    assert dog.report().endswith("no heartbeat of ranks [2]")

    dog.on_train_start(Trainer, None)
    wait_until(lambda: dog.alarms, "an alarm")
    dog.on_train_end(Trainer, None)
    stacks = (tmp_path / "stacks.rank-0.txt").read_text()
    assert "no progress for 0 s" in stacks and threading.current_thread().name and "test_guard.py" in stacks
