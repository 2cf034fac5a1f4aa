"""Signals reach the processes that a command started, stopping is one sentence, and no process outlives the command."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_until
from vita_audio_pl import processes
from vita_audio_pl.child_processes import worker_processes
from vita_audio_pl.errors import UserError
from vita_audio_pl.leaving import resume_hint
from vita_audio_pl.processes import announce_stop, check_agent, check_status, run_command

fork = multiprocessing.get_context("fork")


@pytest.mark.parametrize(("module", "resumes"), [("train", True), ("prepare", True), ("serve", False), ("talk", False)])
def test_only_a_command_that_can_be_resumed_says_so(monkeypatch, module, resumes):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", f"vita_audio_pl.{module}"])
    assert resume_hint("; kept") == ("; kept; rerun the same command to resume" if resumes else "")


STAGE = """
import os, pathlib, signal, sys, time
from vita_audio_pl.child_processes import end_with_launcher
end_with_launcher()
folder = pathlib.Path(sys.argv[1])
def leave(number, frame):
    (folder / "came").write_text(signal.Signals(number).name)
    sys.exit({signal.SIGTERM: 75, signal.SIGUSR1: 0, signal.SIGINT: 3}[number])
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, leave)
(folder / "aside").write_text(str(os.getpid()))
(folder / "aside").rename(folder / "stage")
time.sleep(3600)
"""


def chain(folder: Path) -> None:
    sys.exit(run_command([sys.executable, "-c", STAGE, str(folder)]))


def started(folder: Path) -> tuple[multiprocessing.process.BaseProcess, psutil.Process]:
    """A chain, and its stage when that is ready for signals."""
    process = fork.Process(target=chain, args=(folder,))
    process.start()
    return process, psutil.Process(int(written(folder / "stage")))


def written(path: Path) -> str:
    """Contents of a file, once it is there."""
    wait_until(path.exists, str(path))
    return path.read_text()


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 75),
        (signal.SIGINT, 3),
        (signal.SIGUSR1, 75),  # the stage was done already: the chain stops nevertheless
    ],
)
def test_a_signal_to_a_chain_reaches_its_stage_whose_status_is_the_chains(tmp_path, ended, number, status):
    process, stage = started(tmp_path)
    os.kill(process.pid, number)
    process.join(PATIENCE)
    assert (tmp_path / "came").read_text() == number.name
    assert process.exitcode == status and ended([stage], at_once=True)


def test_a_stage_ends_with_a_killed_chain_and_a_killed_stage_is_told(tmp_path, ended):
    process, stage = started(tmp_path)
    process.kill()
    assert ended([stage])
    assert not (tmp_path / "came").exists()
    assert run_command([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 128 + 9


def test_a_status_is_carried_on_with_a_sentence():
    check_status(0, "stage 'align'")
    with pytest.raises(
        UserError, match=r"stage 'align' was stopped \(finished before it: none\); rerun the same"
    ) as end:
        check_status(75, "stage 'align'", "finished before it: none")
    assert end.value.status == 75
    with pytest.raises(UserError, match="ended with status 2; see its message above") as end:
        check_status(2, "stage 'align'")
    assert end.value.status == 2


COMMAND = """
import pathlib, sys, time
from vita_audio_pl import processes
from vita_audio_pl.config.ending import one_sentence
processes.SAME_PRESS_SECONDS = float(sys.argv[2])
with one_sentence():
    try:
        pathlib.Path(sys.argv[1], "ready").touch()
        time.sleep(3600)
    finally:
        pathlib.Path(sys.argv[1], "unwound").touch()
        while not pathlib.Path(sys.argv[1], "sent").exists():
            time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("signals", "status"),
    [("INT", 130), ("TERM", 143), ("USR1", 75), ("INT, then TERM", 130)],
)
def test_stopping_is_one_sentence_at_once_and_one_more_ends_it(tmp_path, signals, status):
    hangs = "then" in signals
    command = [sys.executable, "-c", COMMAND, str(tmp_path), "0" if hangs else str(PATIENCE)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    written(tmp_path / "ready")
    for number in [signal.Signals[f"SIG{word}"] for word in signals.replace(",", "").split() if word.isupper()]:
        process.send_signal(number)
        if hangs:
            written(tmp_path / "unwound")
    if not hangs:
        (tmp_path / "sent").touch()
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == status and (tmp_path / "unwound").exists()
    [sentence] = error.split("\n")[1:-1]
    name = "Ctrl-C" if signals.startswith("INT") else f"SIG{signals}"
    assert sentence.startswith(f"{name}: stopped in ") and "rerun the same command to resume" in sentence


WAITS_IN_C = """
import ctypes, pathlib, sys
from vita_audio_pl import processes
processes._DEAF = processes._UNWIND = 0.1
with processes.announce_stop(), processes.requeue_on_signal(True):
    mutex = ctypes.create_string_buffer(256)
    for _ in range(2):
        pathlib.Path(sys.argv[1], "ready").touch()
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
SWALLOWS = """
import pathlib, sys, time
from vita_audio_pl import processes
processes._UNWIND = 0.1
with processes.announce_stop(), processes.requeue_on_signal(True):
    while True:
        try:
            pathlib.Path(sys.argv[1], "ready").touch()
            time.sleep(0.01)
        except BaseException:
            pass
"""


@pytest.mark.parametrize(("program", "says"), [(WAITS_IN_C, "stopped while waiting"), (SWALLOWS, "stopped in ")])
def test_a_signal_ends_what_waits_where_python_hears_none_and_what_swallows_it(tmp_path, program, says):
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    written(tmp_path / "ready")
    time.sleep(0.2)
    process.terminate()
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and f"SIGTERM: {says}" in error


SAVED = """
import os, signal, sys
from vita_audio_pl import leaving, processes
leaving.command = processes.command = lambda: "vita_audio_pl.train"
processes.SAME_PRESS_SECONDS = 0.0
try:
    with processes.announce_stop():
        processes.leave_with(75)
        if sys.argv[1] == "within":
            signal.raise_signal(signal.SIGTERM)
finally:
    print("ended")
    signal.raise_signal(signal.SIGTERM)
"""


STOPPED_STAGE = """
import signal, sys
from vita_audio_pl import errors, leaving, processes
leaving.command = processes.command = lambda: "vita_audio_pl.train"
try:
    with processes.announce_stop():
        raise errors.UserError("stage 'align' was stopped", int(sys.argv[1]))
except errors.UserError as error:
    signal.raise_signal(signal.SIGTERM)
    raise SystemExit(error.status)
"""


@pytest.mark.parametrize("status", [75, 2])
def test_a_signal_after_an_error_does_not_change_the_status(status):
    assert subprocess.run([sys.executable, "-c", STOPPED_STAGE, str(status)], timeout=PATIENCE).returncode == status


@pytest.mark.parametrize("when", ["within", "after"])
def test_a_signal_after_the_save_does_not_change_the_status(when):
    ended = subprocess.run([sys.executable, "-c", SAVED, when], capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (75, "") and ended.stdout == ("ended\n" if when == "after" else "")


DONE = """
import signal, sys
from vita_audio_pl import leaving, processes
leaving.command = processes.command = lambda: "vita_audio_pl.train"
processes.SAME_PRESS_SECONDS = 0.0
with processes.announce_stop():
    for job in range(int(sys.argv[1])):
        with processes.announce_stop():
            print("done", flush=True)
            processes.leave_done()
            for _ in range(int(sys.argv[3])):
                signal.raise_signal(int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("jobs", "number", "signals", "status", "done", "stopped"),
    [
        (1, signal.SIGTERM, 2, 0, 1, 0),
        (1, signal.SIGINT, 1, 0, 1, 0),
        (1, signal.SIGINT, 2, 130, 1, 0),
        (2, signal.SIGTERM, 1, 143, 1, 1),  # a sweep has another job, and stops before it
    ],
)
def test_what_is_done_is_not_stopped_as_well(jobs, number, signals, status, done, stopped):
    command = [sys.executable, "-c", DONE, str(jobs), str(int(number)), str(signals)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout.count("done"), ended.stderr.count("stopped")) == (status, done, stopped)


UNREAD = """
import signal, sys
from vita_audio_pl import leaving, processes
leaving.command = processes.command = lambda: "vita_audio_pl.train"
with processes.announce_stop():
    signal.raise_signal(signal.SIGUSR1)
"""


def test_a_signal_before_the_settings_are_read_requeues(tmp_path):
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/told\n")
    (tmp_path / "scontrol").chmod(0o755)
    own = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    for rank in "10":
        ended = subprocess.run([sys.executable, "-c", UNREAD], env=own | {"SLURM_PROCID": rank}, timeout=PATIENCE)
        assert ended.returncode == 75 and (tmp_path / "told").exists() == (rank == "0")
    assert (tmp_path / "told").read_text() == "--oneliner show job 7\nrequeue 7\n"


def test_a_signal_that_comes_from_a_terminal_and_from_the_chain_is_one(monkeypatch, capfd):
    monkeypatch.setattr(processes, "SAME_PRESS_SECONDS", 3600.0)
    with pytest.raises(SystemExit) as end:
        with announce_stop():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    assert end.value.code == 130 and capfd.readouterr().err.count("Ctrl-C") == 1


def start_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(PATIENCE,), daemon=True).start()


def work(folder: Path, method: str) -> None:
    """Keeps a pool busy, whose processes leave their numbers."""
    os.register_at_fork(after_in_child=start_a_thread)  # as libraries do
    with worker_processes(2, method) as pool:
        for place in [folder / "0", folder / "1"]:
            pool.submit(stay, place)
        written(folder / "0"), written(folder / "1")
        (folder / "busy").touch()


def stay(path: Path) -> None:
    path.with_suffix(".aside").write_text(str(os.getpid()))
    path.with_suffix(".aside").rename(path)
    time.sleep(PATIENCE)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_end_with_their_parent_and_leave_the_terminals_signals_to_it(tmp_path, ended, method):
    process = fork.Process(target=work, args=(tmp_path, method))
    process.start()
    written(tmp_path / "busy")
    workers = [psutil.Process(int((tmp_path / name).read_text())) for name in "01"]
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            worker.send_signal(number)
    time.sleep(1.0)  # SIGTERM is looked at within half a second
    assert all(worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    process.kill()
    process.join()
    assert ended(workers)


def test_ctrl_c_does_not_wait_for_what_workers_are_doing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with worker_processes(1, "fork") as pool:
            future = pool.submit(stay, tmp_path / "0")
            written(tmp_path / "0")
            raise KeyboardInterrupt
    with pytest.raises(BrokenProcessPool):
        future.result()


def test_torchruns_variables_are_refused_where_its_agent_has_gone():
    left_over = {
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
    }
    with socket.create_server(("127.0.0.1", 0)) as agent:
        launched = left_over | {"MASTER_PORT": str(agent.getsockname()[1])}
        check_agent(launched)
    for environment in (launched, left_over | {"MASTER_PORT": "x"}):
        with pytest.raises(
            UserError, match="^RANK=1 and .* does not answer at .*unset TORCHELASTIC_RUN_ID .* MASTER_PORT$"
        ):
            check_agent(environment, patience=0)
    check_agent(launched | {"TORCHELASTIC_USE_AGENT_STORE": "False"})  # rank 0 keeps the store, and may come later
    check_agent({})
