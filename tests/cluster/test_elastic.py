"""Nodes that come and go under torchrun: training resumes on those that are there (two agents on this machine)."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from tests.cluster.conftest import CLUSTER, TINY
from tests.patience import PATIENCE, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE)]


@pytest.mark.parametrize("what", ["align", "chain"])
def test_training_goes_on_with_the_nodes_that_are_there(what: str, smoke_world: Path, tmp_path: Path) -> None:
    """A chain loses a node in its first stage, and gets another one in its second."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    own |= {"NODES": "1:2", "GPUS": "1", "MASTER": "127.0.0.1", "PORT": str(port)}
    places = (f"paths.data={smoke_world.parent}", "paths.runs=runs", "run_name=elastic")
    run = tmp_path / "runs" / "elastic"
    steps_of_stage = "stage.steps=600" if what == "align" else "stage.steps=150"

    def node(name: str) -> "subprocess.Popen[bytes]":
        command = ["bash", str(CLUSTER / "torchrun.sh"), *TINY, *places, "trainer=cpu_ddp", steps_of_stage]
        command += ["stage=chain"] if what == "chain" else []
        with (tmp_path / name).open("wb") as told:
            return subprocess.Popen(command, cwd=tmp_path, env=os.environ | own, stdout=told, stderr=told)

    def told() -> str:
        return (tmp_path / "first").read_text()

    def world_sizes() -> list[str]:
        """One after another; a chain says it at each of its stages."""
        return [size for size, _ in groupby(re.findall(r"GLOBAL_RANK: \d+, MEMBER: \d+/(\d+)", told()))]

    def comes(holds: Callable[[], bool], what: str) -> None:
        wait_until(lambda: holds() or first.poll() is not None, what, PATIENCE)
        assert first.poll() is None, told()[-4000:]

    def steps(stage: str = "align") -> int:
        log = run / stage / "metrics.csv"
        return len(log.read_text().splitlines()) - 1 if log.exists() else 0

    def listens() -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", port)) == 0

    first = node("first")
    wait_until(listens, "the place to meet at, which the first node keeps", 300)
    second = node("second")
    try:
        comes(lambda: steps() > 45, "steps on two nodes")
        second.kill()  # the machine is gone
        comes(lambda: world_sizes() == ["2", "1"], "a start on the node that is left")
        comes(lambda: "resuming from step-" in told(), "the checkpoint")
        before = steps()
        comes(lambda: steps() > before + 5, "steps on one node")
        if what == "chain":
            comes(lambda: steps("mtp1") > 25, "steps of the second stage")
        second = node("third")
        comes(lambda: world_sizes() == ["2", "1", "2"], "a start on both nodes")
        # in a chain the node may come between two stages, where there is no step to save
        assert re.search(r"SIGTERM: step \d+ is saved" if what == "align" else "align of elastic is finished", told())
        assert [first.wait(PATIENCE), second.wait(PATIENCE)] == [0, 0], told()
    finally:
        for process in (first, second):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    for stage in ("align",) if what == "align" else ("align", "mtp1", "mtp10", "sft"):
        assert (run / stage / "model" / "model.safetensors").is_file()
