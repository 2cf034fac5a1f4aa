"""A Python that begins with everything imported, for tests that start processes.

To import torch, Lightning and transformers takes several CPU seconds, and most processes of the tests do less work than
that. `warm_python()` is an executable that stands for `sys.executable`: it asks a server (`server.py`), which imported
everything once, to fork, hands its arguments, folder, environment and files to the fork, passes signals on, and ends with
its status. What the fork starts with `sys.executable` begins warm, too: a chain's stages, the ranks of a training.

Where processes are killed, and where it matters that Python starts from nothing, tests take `sys.executable` itself.
"""

import atexit
import os
import shlex
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def _server() -> tuple[Path, "subprocess.Popen[bytes]"]:
    """The executable, and the server behind it: started at the first use, ended with this process."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    executable = folder / "python"
    client = shlex.join([sys.executable, "-IS", str(HERE / "client.py"), str(folder / "socket"), sys.executable])
    executable.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    executable.chmod(0o755)
    command = [sys.executable, str(HERE / "server.py"), str(folder / "socket"), str(executable)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n", "the warm Python did not start"
    atexit.register(_end, server, folder)
    return executable, server


def _end(server: "subprocess.Popen[bytes]", folder: Path) -> None:
    assert server.stdin is not None
    server.stdin.close()
    server.wait()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def warm_python() -> str:
    """Path of the executable."""
    return str(_server()[0])


def cpu_seconds() -> float:
    """Of all processes that the server started and that have ended, and of the server."""
    return float((_server()[0].parent / "spent").read_text()) if _server.cache_info().currsize else 0.0
