"""One process works in a folder; a second one is told, or waits; what the dead left is taken over, once."""

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.patience import PATIENCE, wait_until
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage import lease
from vita_audio_pl.storage.lease import Holder, InUse, hold

fork = multiprocessing.get_context("fork")


def leases(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leave(folder: Path, holder: Holder, number: int = 1) -> Path:
    """A lease that `holder` left."""
    path = folder / f".lease-run-{number:06d}"
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    return path


def gone(**facts: object) -> Holder:
    """The lease of a process of this machine that has ended."""
    process = fork.Process(target=int)
    process.start()
    process.join()
    return dataclasses.replace(Holder.here("an earlier run"), pid=process.pid, **facts)


def elsewhere(**facts: object) -> Holder:
    return dataclasses.replace(Holder.here("a run"), host="node-7", machine="another", **facts)


def contend(folder: Path, gate: object, told: Connection, let_go: object) -> None:
    """Takes the lease when the gate opens, and keeps it until it may go; says what became of it."""
    gate.wait()
    try:
        with hold(folder, "run", "a run"):
            told.send("")
            let_go.wait()
    except InUse as error:
        told.send(str(error))


@pytest.mark.parametrize("left", ["nothing", "stale", "stale, no links"])
def test_of_processes_that_start_together_one_works_and_the_others_are_told_who(tmp_path, monkeypatch, left):
    if left == "stale, no links":
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    for start, many in enumerate([2] * 10 + [8] if left == "nothing" else [2, 8, 8]):
        folder = tmp_path / str(start)
        folder.mkdir()
        if left != "nothing":
            leave(folder, gone(), number=7)
        gate, let_go = fork.Barrier(many), fork.Event()
        pipes = [fork.Pipe() for _ in range(many)]
        processes = [fork.Process(target=contend, args=(folder, gate, end, let_go)) for _, end in pipes]
        for process in processes:
            process.start()
        said = [told.recv() for told, _ in pipes]
        [winner] = [process.pid for process, answer in zip(processes, said, strict=True) if not answer]
        others = [answer for answer in said if answer]
        assert all(f"in use by a run (process {winner} on " in answer and "since 20" in answer for answer in others)
        let_go.set()
        for process in processes:
            process.join()
        assert leases(folder) == []


def test_those_who_wait_work_one_after_another(tmp_path):
    log = tmp_path / "log"

    def work(number: int) -> None:
        with hold(tmp_path / "world", "build", "a build", wait=True):
            with log.open("a") as file:
                file.write(f"{number} ")
            time.sleep(0.02)
            with log.open("a") as file:
                file.write(f"{number}\n")

    processes = [fork.Process(target=work, args=(number,)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(lines) == [[str(number)] * 2 for number in range(6)]


def test_a_killed_holder_is_followed_at_once_even_as_a_zombie_and_not_by_a_process_with_its_number(tmp_path):
    code = (
        "import sys, pathlib, time; from vita_audio_pl.storage.lease import hold\n"
        "with hold(pathlib.Path(sys.argv[1]), 'run', 'a run'): print('holds', flush=True); time.sleep(3600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"holds\n"
    with pytest.raises(InUse, match=f"stop it with 'kill {process.pid}', or take another name"):
        with hold(tmp_path, "run", "a run", advice="take another name"):
            pass
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie until `wait`
    with hold(tmp_path, "run", "a run"):
        assert leases(tmp_path) == [".lease-run-000002"]
    process.wait()
    leave(tmp_path, dataclasses.replace(Holder.here("an earlier run"), born="1"))
    with hold(tmp_path, "run", "a run"):
        pass
    assert leases(tmp_path) == []


def test_of_another_machine_only_one_that_is_silent_is_taken_for_dead(tmp_path, monkeypatch, capsys):
    path = leave(tmp_path, elsewhere())
    os.utime(path, (time.time() - lease.SILENT - 2,) * 2)
    with hold(tmp_path, "run", "a run"):
        pass
    assert "waiting" not in capsys.readouterr().err

    path, looks = leave(tmp_path, elsewhere()), []
    with monkeypatch.context() as patch:  # it beats between two looks
        patch.setattr(time, "sleep", lambda seconds: looks.append(os.utime(path, (time.time() + len(looks) + 1,) * 2)))
        with pytest.raises(InUse, match="a run .process .* on node-7, since .* wait until that ends, stop it$"):
            with hold(tmp_path, "run", "a run"):
                pass
    assert looks and "waiting to see whether it still runs" in capsys.readouterr().err
    monkeypatch.setattr(lease, "SILENT", 1.0)
    os.utime(path)
    with hold(tmp_path, "run", "a run"):  # no beat any more
        assert leases(tmp_path) == [".lease-run-000002"]


def test_a_heartbeat_in_the_future_is_waited_for_once_and_not_until_then(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "SILENT", 0.5)
    path = leave(tmp_path, elsewhere())
    os.utime(path, (time.time() + 86_400,) * 2)  # the clock has gone back since
    with hold(tmp_path, "run", "a run"):
        assert leases(tmp_path) == [".lease-run-000002"]


def test_a_job_that_starts_again_on_another_node_does_not_wait_for_itself(tmp_path):
    leave(tmp_path, elsewhere(launch="SLURM job 77.0"))
    with hold(tmp_path, "run", "a run", launch="SLURM job 77.0"):
        assert leases(tmp_path) == [".lease-run-000002"]


def test_a_lease_that_is_cut_short_is_held_until_it_is_silent(tmp_path, monkeypatch):
    (tmp_path / ".lease-run-000001").write_text('{"what": "a r')
    monkeypatch.setattr(lease, "SILENT", 0.5)
    with hold(tmp_path, "run", "a run"):
        assert leases(tmp_path) == [".lease-run-000002"]


def test_one_who_comes_late_to_a_stale_lease_gives_way_to_whoever_took_it_over_since(tmp_path, monkeypatch):
    """Between the look and the creation another took the lease over, finished, and a third holds it under its number."""
    leave(tmp_path, gone())
    create, calls = lease._create, []

    def late(path: Path, holder: Holder) -> bool:
        if not calls:
            leave(tmp_path, Holder.here("the third"))
        calls.append(path)
        return create(path, holder)

    monkeypatch.setattr(lease, "_create", late)
    with pytest.raises(InUse, match="in use by the third"):
        with hold(tmp_path, "run", "a run"):
            pass
    assert leases(tmp_path) == [".lease-run-000001"]


LOSES = """
import sys, pathlib, time
from vita_audio_pl.storage import lease
lease.BEAT = 0.05
folder = pathlib.Path(sys.argv[1])
with lease.hold(folder, "run", "a run"):
    next(folder.glob(".lease-*")).unlink()
    time.sleep(3600)
"""


def test_a_holder_that_was_taken_for_dead_leaves_as_soon_as_it_sees_that(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOSES, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1 and "is gone: another process considered this one dead" in done.stderr


def test_a_holder_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with hold(tmp_path, "run", "a run"):
        path = tmp_path / ".lease-run-000001"
        os.utime(path, (0, 0))
        wait_until(lambda: path.stat().st_mtime > 0, "a heartbeat")


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be written .*, and a run writes there"):
        with hold(tmp_path / "file" / "run", "run", "a run"):
            pass
