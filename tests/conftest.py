"""Nothing here hangs on the machine's load; what the tests cost is told in CPU seconds, which other jobs do not stretch.

Two workers share the files of tests (`make test`), each with one thread.
"""

import fcntl
import os
import resource
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests import warm_python
from tests.patience import PATIENCE, wait_until

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch
# what is measured of the processor and kept is not kept in the user's own folder
os.environ.setdefault("XDG_CACHE_HOME", f"{tempfile.gettempdir()}/vita-audio-pl-tests-{os.getuid()}")
settings.register_profile("shared_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared_machine")


@pytest.fixture
def ended() -> Callable[..., bool]:
    """Whether all of these processes end, or have ended; a zombie that nobody collects has ended."""

    def ended(processes: Sequence[psutil.Process], at_once: bool = False) -> bool:
        try:
            wait_until(lambda: not any(map(_runs, processes)), "the end of the processes", 0 if at_once else PATIENCE)
        except AssertionError:
            for process in filter(_runs, processes):
                process.kill()
            return False
        return True

    return ended


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`made_once(name, make)` is a folder that `make(folder)` filled, for all workers by the one that came first."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made_once(name: str, make: Callable[[Path], None]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return made_once


@pytest.fixture(scope="session")
def smoke_world(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The smallest spoken world with its tokenizer, codec and shards, made from nothing; only to be read, or copied."""
    for program in ("espeak-ng", "flite"):
        if shutil.which(program) is None:
            pytest.fail(f"the spoken world needs {program}, which `make test` installs")

    def make(folder: Path) -> None:
        command = [warm_python.warm_python(), "-m", "vita_audio_pl.prepare", "size=smoke"]
        subprocess.run(command, cwd=folder, check=True, timeout=PATIENCE)

    return made_once("world", make) / "data" / "spoken_world_smoke"


LONGEST = (
    "tests/training/test_engines.py", "tests/end_to_end/test_readme.py", "tests/end_to_end/test_ablation.py",
    "tests/end_to_end/test_chain.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no worker is left with one of them at the end."""

    def place(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=place)


_spent: Counter[str] = Counter()  # CPU seconds by file; of all workers together where there are some
_worker_seconds: list[float] = []


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return warm_python.cpu_seconds() + sum(one.ru_utime + one.ru_stime for one in used)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before = _cpu_seconds()
    try:
        return (yield)
    finally:
        _spent[item.nodeid.partition("::")[0]] += _cpu_seconds() - before


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"spent": dict(_spent), "seconds": _cpu_seconds()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})  # a worker that died has none
    _spent.update(output.get("spent", {}))
    _worker_seconds.append(output.get("seconds", 0.0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Beside `--durations`, the files that took most; what several tests share counts for the first."""
    if config.option.durations:
        total = sum(_worker_seconds) or _cpu_seconds()
        terminalreporter.section(f"CPU seconds: {total:.0f}, by file")
        for name, seconds in _spent.most_common(config.option.durations):
            terminalreporter.write_line(f"{seconds:7.1f} {name}")
