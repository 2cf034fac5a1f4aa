import http.server
import multiprocessing
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bit_flips import flip, some_bits
from toy_corpus import Corpus, rows_of, take

from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.staging import is_prepared
from vita_audio_pl.data.staging import local_folder as folder_here
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage import remote
from vita_audio_pl.storage.places import place


def local_folder(url: str, source: str, cache: str) -> Path:
    return folder_here(place(url), source, cache)


class Served:
    """A folder behind HTTP, with the paths that were asked for."""

    def __init__(self, folder: Path):
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *told: object) -> None:
                if self.command == "GET":
                    asked.append(self.path)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def served(corpus: Corpus, tmp_path: Path) -> Iterator[tuple[Served, Path]]:
    shutil.copytree(corpus.shards, tmp_path / "remote")
    server = Served(tmp_path / "remote")
    yield server, tmp_path / "remote"
    server.close()


def test_training_from_a_url_is_training_from_a_folder(
    corpus: Corpus, served: tuple[Served, Path], tmp_path: Path
) -> None:
    remote = replace(corpus, shards=served[0].url)
    here = [rows_of(batch) for batch in take(corpus.module(), 20)]
    there = [rows_of(batch) for batch in take(remote.module(cache=str(tmp_path / "cache")), 20)]
    assert here == there


def stage(url: str, cache: str) -> None:
    local_folder(url, "asr", cache)


def test_each_shard_is_copied_once_by_all_processes_of_a_node(served: tuple[Served, Path], tmp_path: Path) -> None:
    server, _ = served
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=stage, args=(server.url, str(tmp_path / "cache"))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    shards = [path for path in server.asked if path.endswith(".tar")]
    assert len(shards) == len(set(shards)) == 3


def test_a_source_prepared_anew_is_copied_anew_where_it_differs(
    corpus: Corpus, served: tuple[Served, Path], tmp_path: Path
) -> None:
    server, folder = served
    cache = str(tmp_path / "cache")
    first = local_folder(server.url, "asr", cache)
    shutil.rmtree(folder / "asr")
    shutil.copytree(corpus.shards / "tts", folder / "asr")
    second = local_folder(server.url, "asr", cache)
    assert first == second
    assert (second / "manifest.json").read_bytes() == (corpus.shards / "tts/manifest.json").read_bytes()


def test_a_shard_missing_at_home_is_said_and_nothing_looks_whole(served: tuple[Served, Path], tmp_path: Path) -> None:
    server, folder = served
    next((folder / "asr").glob("*.tar")).unlink()
    with pytest.raises(UserError, match="a file that the manifest names is missing"):
        local_folder(server.url, "asr", str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("manifest.json")) and not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.parametrize("name", ["a shard", "index.bin", "manifest.json", "checksums.json"])
def test_a_copy_that_is_damaged_is_fetched_again_at_the_next_start(
    served: tuple[Served, Path], tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    server, home = served
    copy = local_folder(server.url, "asr", str(tmp_path / "cache"))
    path = sorted(copy.glob("*.tar"))[1] if name == "a shard" else copy / name
    for bit in some_bits(path, 8):
        flip(path, bit)
        caplog.clear()
        local_folder(server.url, "asr", str(tmp_path / "cache"))
        assert path.read_bytes() == (home / "asr" / path.name).read_bytes()
        if name in ("a shard", "index.bin"):
            assert any(str(path) in line and "copying it again" in line for line in caplog.messages)
    path.unlink()
    local_folder(server.url, "asr", str(tmp_path / "cache"))
    assert PreparedSource(copy).read(0).id == "asr-0"


def test_what_is_damaged_at_home_is_never_used(served: tuple[Served, Path], tmp_path: Path) -> None:
    server, home = served
    shard = sorted((home / "asr").glob("*.tar"))[0]
    flip(shard, 8 * 700)
    with pytest.raises(UserError, match=f"{shard.name} is damaged: bytes 0 to .*damaged there or was on the way"):
        local_folder(server.url, "asr", str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("manifest.json"))


def test_what_is_not_there_or_cannot_be_reached_is_said(
    served: tuple[Served, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES", ())
    server, _ = served
    home = place(server.url)
    assert is_prepared(home, "asr") and not is_prepared(home, "nothing")
    with pytest.raises(UserError, match="'nothing' is not prepared at http"):
        local_folder(server.url, "nothing", str(tmp_path))
    server.close()
    with pytest.raises(UserError, match="cannot be read"):
        local_folder(server.url, "asr", str(tmp_path / "other"))


@pytest.mark.parametrize("shards", ["pipe:cat /etc/passwd", "PIPE:x", "| cat x", "nonsense://x"])
def test_commands_and_unknown_protocols_are_refused(shards: str) -> None:
    with pytest.raises(UserError, match=r"data\.shards is"):
        place(shards, "data.shards")


def test_a_remote_manifest_cannot_lead_out_of_the_cache(served: tuple[Served, Path], tmp_path: Path) -> None:
    server, folder = served
    manifest = folder / "asr/manifest.json"
    shard = next((folder / "asr").glob("*.tar")).name
    manifest.write_text(manifest.read_text().replace(shard, f"../../{shard}"))
    with pytest.raises(UserError, match="no plain file name"):
        local_folder(server.url, "asr", str(tmp_path / "cache"))
    assert not list(tmp_path.glob("*.tar"))
