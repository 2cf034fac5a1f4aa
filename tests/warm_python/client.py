"""`python client.py SOCKET PYTHON ARGUMENT...`: what `PYTHON ARGUMENT...` does, in a fork of the server behind the socket."""

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType


def main() -> None:
    address, python, *arguments = sys.argv[1:]
    is_ours = arguments[:1] == ["-m"] and arguments[1].startswith("vita_audio_pl.") or arguments[0].endswith(".py")
    if not is_ours:
        os.execv(python, [python, *arguments])
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)

    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):  # the fork has ended, and its status is on the way
            server.send(bytes([number]))

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, forward)
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    body = json.dumps(request).encode()
    socket.send_fds(server, [len(body).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(body)
    for number in (0, 1, 2):  # or a reader of our output would wait for us and not for the fork
        os.close(number)
    answer = server.recv(4)
    status = int.from_bytes(answer, "big", signed=True) if answer else 1
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


main()
