"""Nothing here hangs on the machine's load; what the tests cost is told in CPU seconds, which other jobs do not stretch."""

import os
import resource
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests import warm_python
from tests.patience import PATIENCE, wait_until

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


_spent: Counter[str] = Counter()


@pytest.fixture(scope="session")
def smoke_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest spoken world with its tokenizer, codec and shards, made from nothing; only to be read, or copied."""
    if shutil.which("espeak-ng") is None:
        pytest.fail("the spoken world needs espeak-ng, which `make test` installs")
    folder = tmp_path_factory.mktemp("world")
    command = [warm_python.warm_python(), "-m", "vita_audio_pl.prepare", "size=smoke"]
    subprocess.run(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=PATIENCE)
    return folder / "data" / "spoken_world_smoke"


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Beside `--durations`, the files that took most; what several tests share counts for the first."""
    if config.option.durations:
        terminalreporter.section(f"CPU seconds: {_cpu_seconds():.0f}, by file")
        for name, seconds in _spent.most_common(config.option.durations):
            terminalreporter.write_line(f"{seconds:7.1f} {name}")
