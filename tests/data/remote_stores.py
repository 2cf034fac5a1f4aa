"""Stores on loopback: moto's S3, and a web server that serves ranges of files."""

import http.server
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from vita_audio_pl.storage.places import Place, names_in, place


@contextmanager
def s3(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }.items():
        patch.setenv(name, value)
    bucket = place("s3://lab")
    bucket._store().mkdir("lab", region_name="eu-west-1")
    try:
        yield "s3://lab"
    finally:
        bucket._store().clear_instance_cache()
        server.stop()


class Served:
    """A folder behind HTTP, with ranges; `sent` counts the bytes of each file that was asked for."""

    def __init__(self, folder: Path):
        self.sent: dict[str, int] = {}
        sent = self.sent

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *told: object) -> None:
                pass

            def do_GET(self) -> None:
                path = Path(self.translate_path(self.path))
                if not path.is_file():
                    super().do_GET()
                    return
                data = path.read_bytes()
                found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                first, last = (int(found[1]), int(found[2] or len(data) - 1)) if found else (0, len(data) - 1)
                piece = data[first : last + 1]
                sent[path.name] = sent.get(path.name, 0) + len(piece)
                self.send_response(206 if found else 200)
                self.send_header("Content-Length", str(len(piece)))
                if found:
                    self.send_header("Content-Range", f"bytes {first}-{first + len(piece) - 1}/{len(data)}")
                self.end_headers()
                self.wfile.write(piece)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def put(folder: Path, target: Place) -> Place:
    """Copies a folder to a store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (target / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
    return target


def stored(folder: Place) -> dict[str, bytes]:
    """All that readers of a source look at."""
    return {name: (folder / name).read_bytes() for name in names_in(folder) if not name.startswith(".")}
