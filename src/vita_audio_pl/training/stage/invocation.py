"""One invocation of the training command: shared by its ranks and stages, and by every restart of its job.

`force=true` trains a stage from scratch once per invocation, so a restart has to be distinguished from a rerun of the same command.
"""

import os
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from vita_audio_pl.storage.lease import this_job
from vita_audio_pl.training.run_folder.layout import StageFolder

INVOCATION = "VITA_AUDIO_PL_INVOCATION"
"""Environment variable that names the invocation, for jobs whose scheduler does not."""
_WITHIN = "VITA_AUDIO_PL_WITHIN"  # id of the invocation that started this process
_KEY = "vita_audio_pl/invocation"
_outermost: "Invocation | None" = None  # of this process


@dataclass(frozen=True)
class Invocation:
    """One invocation.

    Attributes:
        id: identifies it.
        forced: stages that `force=true` was given for.
    """

    id: str
    forced: list[StageFolder] = field(default_factory=list)


@contextmanager
def invoked(force: bool) -> Iterator[Invocation]:
    """The invocation that this process belongs to; nested blocks and child processes share it.

    When the outermost block ends without an error, the stages that `force` began are marked as ended well.
    """
    global _outermost
    if (within := os.environ.get(_WITHIN)) is not None:
        yield _outermost or Invocation(within)
        return
    invocation = _outermost = Invocation(_identity() if force else uuid.uuid4().hex)
    os.environ[_WITHIN] = invocation.id
    try:
        yield invocation
    finally:
        _outermost = None
        del os.environ[_WITHIN]
    for stage in invocation.forced:
        stage.finish_forced(invocation.id)


def again(force: bool, invocation: str) -> str:
    """How a finished stage is trained again."""
    if not force:
        return "force=true trains it again"
    return f"force=true has trained it for this invocation, {invocation}; {INVOCATION}=WORD in the environment names another one"


def _identity() -> str:
    """An id that restarts of one job share and the next job does not, as far as the environment tells.

    At a terminal every command is a separate invocation, also inside a SLURM allocation or a pod.
    """
    if named := os.environ.get(INVOCATION):
        return named
    by_hand = sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
    if "SLURM_JOB_ID" in os.environ and ("SLURM_STEP_ID" in os.environ or not by_hand):
        return this_job()
    if "KUBERNETES_SERVICE_HOST" in os.environ and not by_hand:
        return f"Kubernetes job {_kubernetes_job()}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return this_job() or _of_torchruns_agent()
    return uuid.uuid4().hex


def _kubernetes_job() -> str:
    """The first pod's name where ranks share it, else this pod's without what is drawn for each start."""
    host = os.environ.get("MASTER_ADDR", "")
    if host in ("", "localhost") or host.startswith("127."):
        host = re.sub(r"-[a-z0-9]{5}$", "", os.environ.get("HOSTNAME", ""))
    return host


def _of_torchruns_agent() -> str:
    """A name that torchrun's agents keep for all ranks as long as they live: it outlasts the ranks that they start again."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported, without being declared so

    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = TCPStore(*where, is_master=False, timeout=timedelta(minutes=5))
        name: bytes = store.compare_set(_KEY, "", uuid.uuid4().hex)
        return f"torchrun job {name.decode()}"
    return f"torchrun job at {where[0]}:{where[1]}"
