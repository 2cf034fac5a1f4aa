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
from vita_audio_pl.errors import UserError
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
