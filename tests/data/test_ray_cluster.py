"""A source prepared on a Ray cluster of two nodes (both on this machine), one of which is lost while it works."""

import os
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_corpus import toy_job, toy_tokenizer, write_corpus

from tests.patience import PATIENCE, wait_until
from vita_audio_pl.data.executors import RayExecutor
from vita_audio_pl.data.jobs import jobs_of
from vita_audio_pl.data.prepare_source import prepare_source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE)]


def never_done_on(node: str, begun: Path, load: Any, *recording: Any) -> np.ndarray:
    """As `load`, but on one node it is not done before that is lost."""
    import ray

    if ray.get_runtime_context().get_node_id() == node:
        begun.touch()
        time.sleep(PATIENCE)
    wave: np.ndarray = load(*recording)
    return wave


def test_a_source_is_prepared_though_a_node_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    here = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    monkeypatch.setenv("PYTHONPATH", here)
    write_corpus(tmp_path / "raw", "asr", 260)
    alone, job = (toy_job(tmp_path / "raw", tmp_path / name, "asr", toy_tokenizer()) for name in ("alone", "cluster"))
    prepare_source(alone)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        begun = tmp_path / "begun"

        def lose() -> None:
            wait_until(begun.exists, "work on the second node")
            cluster.remove_node(second, allow_graceful=False)

        loser = threading.Thread(target=lose)
        loser.start()
        manifest = prepare_source(
            replace(job, load_audio=partial(never_done_on, second.node_id, begun, job.load_audio)), RayExecutor(2)
        )
        loser.join()
    finally:
        cluster.shutdown()
    assert manifest is not None and begun.exists() and [state.done for state in jobs_of(job.out)] == [6]
    for path in alone.out.glob("*.tar"):
        assert (job.out / path.name).read_bytes() == path.read_bytes()
