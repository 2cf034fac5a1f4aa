import errno
import os
import threading
import time
from pathlib import Path

import pytest
from bit_flips import flip

from tests.patience import wait_until
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage import checksums
from vita_audio_pl.storage.checksums import (
    CHECKSUMS,
    SummedFile,
    find_damage,
    read_checksums,
    read_sealed,
    sum_of_bytes,
    sum_of_files,
    sum_of_folder,
    verify,
    write_checksums,
    write_sealed,
)
from vita_audio_pl.storage.node import once_a_node
from vita_audio_pl.storage.open_files import OpenFiles


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(checksums, "BLOCK", 1000)
    return 1000


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000, 5001])
def test_checksums_are_the_same_however_they_are_made(tmp_path: Path, small_blocks: int, size: int) -> None:
    data = os.urandom(size)
    with open(tmp_path / "file", "wb") as file:
        writer = SummedFile(file)
        for at in range(0, size, 700):
            writer.write(data[at : at + 700])
    assert (tmp_path / "file").read_bytes() == data
    assert writer.sum == sum_of_bytes(data) == sum_of_files([tmp_path / "file"])[tmp_path / "file"]


def test_every_flipped_bit_is_found_and_its_block_named(tmp_path: Path, small_blocks: int) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name, size in (("small", 3), ("a/deep/large", 2500)):
        (tmp_path / name).write_bytes(os.urandom(size))
    sums = sum_of_folder(tmp_path)
    write_checksums(tmp_path, sums)
    assert read_checksums(tmp_path) == sums and not list(find_damage(tmp_path, sums))
    large = tmp_path / "a/deep/large"
    for bit in range(0, 2500 * 8, 397):
        flip(large, bit)
        start = bit // 8 // 1000 * 1000
        where = f"{large} is damaged: bytes {start} to {min(start + 1000, 2500) - 1} are not what was written; copy it"
        with pytest.raises(UserError, match=where):
            verify(tmp_path, sums, "copy it again")
        flip(large, bit)
    verify(tmp_path, sums, "copy it again")


def test_a_file_that_is_gone_or_cut_is_named(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"12345")
    sums = sum_of_folder(tmp_path)
    write_checksums(tmp_path, sums)
    (tmp_path / "a").unlink()
    (tmp_path / "c").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"/a is missing \(and 1 more\); copy it again"):
        verify(tmp_path, sums, "copy it again")
    assert [str(damage) for damage in find_damage(tmp_path, sums)][1].endswith("c has 4 bytes where 5 were written")


def test_every_flipped_bit_of_a_sealed_file_is_found(tmp_path: Path) -> None:
    value = {"format": 1, "what": 'a "seal": "0123456789abcdef" in a text, žluťoučký', "list": [1, {"seal": "x"}]}
    path = tmp_path / "sealed.json"
    write_sealed(path, value)
    assert read_sealed(path) == value
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        with pytest.raises(UserError, match=f"{path} is damaged or was edited"):
            read_sealed(path)
        flip(path, bit)
    for text in ("", "{}", '"seal": "', path.read_text()[:-20]):
        path.write_text(text)
        with pytest.raises(UserError, match="is damaged or was edited"):
            read_sealed(path)


def test_a_machine_that_cannot_read_now_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*arguments: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    (tmp_path / "a").write_bytes(b"12345")
    sums = sum_of_folder(tmp_path)
    monkeypatch.setattr("vita_audio_pl.storage.checksums.os.open", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        list(find_damage(tmp_path, sums))


def test_the_list_leaves_out_what_is_hidden_or_checks_itself(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    (tmp_path / ".lock").write_bytes(b"")
    write_sealed(tmp_path / "quarantine.json", {})
    write_checksums(tmp_path, sum_of_folder(tmp_path))
    assert list(sum_of_folder(tmp_path)) == ["weights"]
    (tmp_path / CHECKSUMS).unlink()
    assert read_checksums(tmp_path) is None


def test_those_who_wait_for_work_share_it_and_those_who_come_later_do_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    asked: set[int] = set()
    now = time.time_ns

    def noted() -> int:
        asked.add(threading.get_ident())
        return now()

    def work(number: int) -> None:
        wait_until(lambda: len(asked) >= 4, "all who ask for the work")
        done.append(number)

    name = f"test-{os.getpid()}-{time.time_ns()}"
    monkeypatch.setattr(time, "time_ns", noted)
    threads = [threading.Thread(target=once_a_node, args=(name, lambda n=n: work(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1
    once_a_node(name, lambda: work(9))
    assert done[1:] == [9]


def test_work_that_fails_is_not_taken_for_done() -> None:
    name = f"test-{os.getpid()}-{time.time_ns()}"
    for _ in range(2):
        with pytest.raises(ValueError):
            once_a_node(name, lambda: int("x"))


def test_open_files_are_bounded_and_what_was_used_last_stays_open(tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(40)]
    for n, path in enumerate(paths):
        path.write_bytes(bytes([n]) * 10)
    files, before = OpenFiles(most=8), len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for n, path in enumerate(paths):
            assert files.read(path, 2, 100) == bytes([n]) * 8
            assert files.read(paths[0], 0, 1) == b"\0"
    assert len(os.listdir("/proc/self/fd")) == before + 8
    paths[0].unlink()
    assert files.read(paths[0], 0, 1) == b"\0"
    files.forget(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(FileNotFoundError):
        files.read(paths[0], 0, 1)


def test_handles_that_others_hold_are_made_up_for(tmp_path: Path) -> None:
    import resource

    paths = [tmp_path / str(n) for n in range(20)]
    for path in paths:
        path.write_bytes(b"x")
    files = OpenFiles(most=16)
    for path in paths[:10]:
        files.read(path, 0, 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, limits[1]))
    held: list[int] = []
    try:
        while True:
            try:
                held.append(os.open(paths[0], os.O_RDONLY))
            except OSError:
                break
        assert files.read(paths[15], 0, 1) == b"x"  # gives up those that it has
        files.forget(tmp_path)
        held.append(os.open(paths[0], os.O_RDONLY))
        while True:
            try:
                held.append(os.open(paths[0], os.O_RDONLY))
            except OSError:
                break
        with pytest.raises(OSError, match="no file handle is left to open .*ulimit"):
            files.read(paths[16], 0, 1)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
