"""`python server.py SOCKET EXECUTABLE`: imports what the commands import, then forks a process for each `client.py`.

The server itself only imports: it has no threads and has computed nothing, so its forks are as good as new processes.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import resource
import runpy
import selectors
import signal
import socket
import sys
from pathlib import Path

IMPORTED = (
    "lightning.pytorch.loggers",
    "torch.utils.tensorboard",
    "transformers.models.qwen2.modeling_qwen2",
    "vita_audio_pl.evaluation.runs.evaluate",
    "vita_audio_pl.inference.answering",
    "vita_audio_pl.preparation",
    "vita_audio_pl.reporting.run.page",
    "vita_audio_pl.reporting.run.result_page",
    "vita_audio_pl.training.stage.data",
    "vita_audio_pl.training.callbacks.sample_writer",
    "vita_audio_pl.training.stage.train",
    "wandb",
)


def take(client: socket.socket) -> tuple[list[str], str, dict[str, str], list[int]]:
    """Arguments, folder, environment and the three files of a request."""
    length, files, _, _ = socket.recv_fds(client, 4, 3)
    body = b""
    while len(body) < int.from_bytes(length, "big"):
        body += client.recv(1 << 20)
    request = json.loads(body)
    return request["arguments"], request["folder"], request["environment"], files


def serve(address: str) -> tuple[list[str], str, dict[str, str], list[int]]:
    """Forks for every client, until our standard input ends; returns in the forks alone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    spent = Path(address).with_name("spent")
    spent.write_text("0")
    children: dict[int, socket.socket] = {}
    awake, wake = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    print("ready", flush=True)
    with selectors.DefaultSelector() as selector:
        for waited_for in (listener, awake, 0):
            selector.register(waited_for, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == 0:
                    for child in children:
                        kill(child, signal.SIGKILL)
                    os._exit(0)
                elif key.fileobj == awake:
                    os.read(awake, 4096)
                    reap(children, selector, spent)
                elif key.fileobj is listener:
                    client, _ = listener.accept()
                    request = take(client)
                    child = os.fork()
                    if child == 0:
                        os.setsid()
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        for other in (listener, client, *children.values()):
                            other.close()
                        os.close(awake)
                        os.close(wake)
                        return request
                    for file in request[3]:
                        os.close(file)
                    children[child] = client
                    selector.register(client, selectors.EVENT_READ, child)
                else:
                    number = key.fileobj.recv(1)
                    kill(key.data, number[0] if number else signal.SIGKILL)  # it was killed itself
                    if not number:
                        selector.unregister(key.fileobj)


def reap(children: dict[int, socket.socket], selector: selectors.BaseSelector, spent: Path) -> None:
    """Tells clients how their forks ended."""
    while children:
        child, status, _ = os.wait3(os.WNOHANG)
        if not child:
            break
        code = os.waitstatus_to_exitcode(status)
        if code:
            kill(child, signal.SIGKILL)  # the ranks that it started
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        beside = spent.with_suffix(".new")
        beside.write_text(str(sum(one.ru_utime + one.ru_stime for one in used)))
        beside.replace(spent)
        client = children.pop(child)
        with contextlib.suppress(KeyError):
            selector.unregister(client)
        with contextlib.suppress(OSError):
            client.send(code.to_bytes(4, "big", signed=True))
        client.close()


def kill(child: int, number: int) -> None:
    """SIGKILL reaches all that a fork started in its session, other signals the fork alone."""
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(child, number)
        else:
            os.kill(child, number)


def become(arguments: list[str], folder: str, environment: dict[str, str], files: list[int], executable: str) -> None:
    """Runs what was asked for as this process's main program."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.modules["wandb.sdk.data_types._private"].MEDIA_TMP.__init__()  # or the first fork to end would empty it for all
    sys.executable = executable
    sys.orig_argv = [executable, *arguments]
    name, *given = arguments[1:] if arguments[0] == "-m" else arguments
    sys.argv = [name, *given]
    sys.path[0] = os.getcwd() if arguments[0] == "-m" else str(Path(name).parent)
    if arguments[0] == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")


if __name__ == "__main__":
    ADDRESS, EXECUTABLE = sys.argv[1:]
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    become(*serve(ADDRESS), EXECUTABLE)
