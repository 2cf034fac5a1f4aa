"""Whatever a command ends with is one sentence and a status; what nobody expected leaves a file with its traceback."""

import errno
import os
import resource
import subprocess
import sys
from contextlib import closing, contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.patience import PATIENCE
from vita_audio_pl.codecs import write_wav
from vita_audio_pl.config.ending import one_sentence
from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.inference.sinks import _GrowingWav
from vita_audio_pl.storage.files import atomic_write, write_array


class OutOfMemoryError(RuntimeError):
    """As torch's."""


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (UserError("the corpus is not there"), 2, "error: the corpus is not there"),
        (KeyboardInterrupt(), 130, "interrupted; rerun the same command"),
        (OSError(errno.ENOSPC, "No space left on device", "metrics.csv"), 1, "no space is left for metrics.csv"),
        (PermissionError(errno.EACCES, "Permission denied", "data/x"), 1, "no permission for data/x"),
        (OSError(errno.EROFS, "Read-only file system", "runs/a"), 1, "runs/a is on a read-only file system"),
        (OSError(errno.EMFILE, "Too many open files", "x.tar"), 1, "ulimit -n"),
        (MemoryError(), 1, "no memory left"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 1, "no memory left"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            1,
            "no memory left",
        ),
        (RuntimeError("can't start new thread"), 1, "ulimit -u"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "trainer.rows_per_device"),
        (
            RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"),
            1,
            "another rank has ended",
        ),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError in test_endings.py"),
    ],
)
def test_an_exception_is_one_sentence_and_a_status(error, status, says, capsys, tmp_path):
    with pytest.raises(SystemExit) as end, one_sentence(str(tmp_path / "runs")):
        raise error
    told = capsys.readouterr().err
    assert end.value.code == status
    assert says in told and told.count("\n") == 1
    files = list(tmp_path.glob("runs/errors/*.txt"))
    assert len(files) == isinstance(error, ZeroDivisionError)
    assert all("test_an_exception_is_one_sentence" in path.read_text() and str(path) in told for path in files)


@contextmanager
def no_file_above(size):
    """The kernel refuses to let files grow further, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def growing_sound(path):
    with closing(_GrowingWav(path, 16_000)) as sink:
        sink.write(np.zeros(1 << 16, np.float32))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: atomic_write(path, bytes(1 << 16)),
        lambda path: write_array(path, np.zeros(1 << 16)),
        lambda path: write_wav(path, np.zeros(1 << 16), 16_000),
        growing_sound,
        lambda path: save_file({"x": torch.zeros(1 << 16)}, path),
    ],
    ids=["bytes", "array", "sound", "growing sound", "weights"],
)
def test_whatever_writes_says_why_it_could_not(write, capsys, tmp_path):
    with pytest.raises(SystemExit) as end, no_file_above(4096), one_sentence(str(tmp_path / "runs")):
        write(tmp_path / "file")
    told = capsys.readouterr().err
    assert end.value.code == 1 and "ulimit -f" in told and told.count("\n") == 1


def test_a_traceback_goes_elsewhere_where_the_runs_cannot_be_written(capsys, tmp_path):
    (tmp_path / "runs").write_text("a file, no folder")
    with pytest.raises(SystemExit), one_sentence(str(tmp_path / "runs")):
        raise ValueError("odd")
    assert os.path.isfile(capsys.readouterr().err.split("report it with ")[1].split(",")[0])


def test_a_reader_that_goes_away_is_no_error():
    command = (
        "from vita_audio_pl.config.ending import one_sentence\nwith one_sentence():\n    while True: print('x' * 999)"
    )
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert (process.wait(PATIENCE), process.stderr.read()) == (141, b"")


PRINTS = """
import sys
from vita_audio_pl.config.ending import one_sentence, require_streams
with one_sentence():
    require_streams()
    print("za\\u017c\\xf3\\u0142\\u0107 \\udcff")
    sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else None)
"""


@pytest.mark.parametrize(
    ("unbuffered", "redirected", "status", "says"),
    [
        ("", ">&-", 2, "standard output is closed"),
        ("", ">/dev/full", 1, "standard output cannot be written (No space left on device)"),
        ("1", ">/dev/full", 1, "standard output cannot be written (No space left on device)"),
        ("", "0 >/dev/full", 1, "standard output cannot be written"),
        ("", "3 >/dev/full", 3, ""),  # what else went wrong is told
        ("", "2>&-", 0, ""),
    ],
)
def test_what_is_printed_is_never_lost_in_silence(unbuffered, redirected, status, says):
    command = f"PYTHONUNBUFFERED={unbuffered} exec {sys.executable} -c '{PRINTS}' {redirected}"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == status and says in ended.stderr and ended.stderr.count("\n") == bool(says)


FAILS = """
import errno, sys
from vita_audio_pl.config.ending import one_sentence
from vita_audio_pl.errors import UserError
with one_sentence():
    print("a line that stays in the buffer")
    raise UserError("no space for the log", 75) from OSError(errno.ENOSPC, "No space left on device", "log")
"""


@pytest.mark.parametrize("stdout", ["full", "closed"])
def test_what_went_wrong_is_told_also_where_nothing_can_be_printed(stdout):
    full = os.open("/dev/full", os.O_WRONLY)
    read, write = os.pipe()
    os.close(read)
    given = {"full": full, "closed": write}[stdout]
    command, buffered = [sys.executable, "-c", FAILS], os.environ | {"PYTHONUNBUFFERED": ""}
    ended = subprocess.run(command, env=buffered, stdout=given, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    os.close(full)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (75, "error: no space for the log\n")


def test_an_answer_is_printed_whatever_the_locale():
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run([sys.executable, "-c", PRINTS], env=plain, capture_output=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "zażółć \\udcff\n".encode(), b"")


def test_memory_that_is_lacking_says_nothing_about_data():
    assert is_machine_fault(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert is_machine_fault(RuntimeError("I/O: No space left on device (os error 28)"))
    assert not is_machine_fault(RuntimeError("the shape is wrong")) and not is_machine_fault(FileNotFoundError(2, "x"))
