"""The package's front door."""

import os
import subprocess
import sys

import vita_audio_pl


def test_every_public_name_is_where_the_package_says():
    for name in vita_audio_pl.__all__:
        assert getattr(vita_audio_pl, name).__name__ == name


HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""What Python does at its start, but where a shell in the background has the signal ignored."""


def test_signals_while_a_command_imports_are_a_sentence_and_a_program_that_imports_the_package_keeps_its_own(tmp_path):
    (tmp_path / "hydra.py").write_text("import os, signal\nsignal.raise_signal(int(os.environ['NUMBER']))\n")
    # srun sends one more to a task whose neighbours have ended; it must not cut what puts the job back
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\nkill -TERM $PPID\nsleep 0.2\necho $@ >> {tmp_path}/told\n")
    (tmp_path / "scontrol").chmod(0o755)
    train, own = ["-m", "vita_audio_pl.train"], ["-c", f"{HEARS_CTRL_C}; import vita_audio_pl, hydra"]
    requeued = "--oneliner show job 7\nrequeue 7\n"
    for started, number, says, status, told in (
        (["-m", "vita_audio_pl.export"], 2, "Ctrl-C: stopped while starting; rerun the same command", 130, ""),
        (train, 2, "Ctrl-C: stopped while starting", 130, ""),
        ([*train, "callbacks.requeue=false"], 10, "SIGUSR1: stopped while starting", 75, ""),
        (train, 10, "SIGUSR1: stopped while starting", 75, requeued),
        (train, 15, "SIGTERM: stopped while starting", 143, f"{requeued}--oneliner show job 7\n"),
        (own, 2, "KeyboardInterrupt", -2, f"{requeued}--oneliner show job 7\n"),
    ):
        paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        ended = subprocess.run(
            [sys.executable, *started],
            env=os.environ | paths | {"NUMBER": str(number), "SLURM_JOB_ID": "7"},
            capture_output=True,
            text=True,
        )
        assert says in ended.stderr and ("Traceback" in ended.stderr) is (started == own)
        assert ended.returncode == status
        assert ((tmp_path / "told").read_text() if (tmp_path / "told").exists() else "") == told


def test_a_command_without_memory_for_its_imports_ends_in_a_sentence(tmp_path):
    paths = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    (tmp_path / "hydra.py").write_text("raise ImportError('libtorch_cpu.so: failed to map segment from shared object')")
    for limit, says in (
        ("unlimited", "this machine has no memory left"),
        ("400000", "'ulimit -v' allows this process 390 MiB"),
    ):
        command = f"ulimit -v {limit}; exec {sys.executable} -m vita_audio_pl.export"
        ended = subprocess.run(["bash", "-c", command], env=paths, capture_output=True, text=True)
        assert ended.returncode == 1 and f"error: {says}" in ended.stderr and "Traceback" not in ended.stderr


def test_a_command_in_a_folder_that_is_gone_ends_in_a_sentence(tmp_path):
    command = (
        f"mkdir {tmp_path}/x && cd {tmp_path}/x && rmdir {tmp_path}/x && exec {sys.executable} -m vita_audio_pl.export"
    )
    ended = subprocess.run(["bash", "-c", command], env=os.environ, capture_output=True, text=True)
    assert ended.returncode == 1 and "error: the current folder is gone" in ended.stderr
    assert "Traceback" not in ended.stderr
