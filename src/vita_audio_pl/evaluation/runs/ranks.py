"""Several processes that share an evaluation: how the work is divided, and how they end together."""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from vita_audio_pl.errors import UserError
from vita_audio_pl.leaving import print_now
from vita_audio_pl.processes import check_agent
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.storage.lease import hold, this_job
from vita_audio_pl.storage.names import safe_name

T = TypeVar("T")

_EVERY = 2.0  # seconds between checks of the others
_TORCHRUN, _SRUN = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), ("SLURM_JOB_ID",)  # always set together with the rank
_ALONE = 20.0  # seconds without a heartbeat of any other process before it is reported
_SILENCE = 300.0  # seconds without a heartbeat before a process counts as dead


@dataclass(frozen=True)
class Share:
    """This process's share of the work: batches `i` with `i % ranks == rank`.

    Attributes:
        local: rank of this process on its node, which determines its GPU.
        launch: name of the launch, equal in its processes.
    """

    rank: int = 0
    ranks: int = 1
    local: int = 0
    launch: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise UserError(f"shard {self.rank} of {self.ranks} does not exist; shards count from 0")

    @classmethod
    def of_environment(cls) -> "Share":
        """From the variables of torchrun or SLURM; all the work if there are none.

        Raises:
            UserError: variables are left over from another launch, so this process would wait for others that never
                come.
        """
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            _refuse_left_over("WORLD_SIZE", "RANK", _TORCHRUN)
            check_agent()
            names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
            return cls(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK"), _launch(*names))
        # a batch script has the variables of the job, but is one process; only srun's tasks have those of a step
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_JOB_ID" in os.environ else "SLURM_NTASKS"
        if "SLURM_PROCID" in os.environ and tasks in os.environ:
            _refuse_left_over(tasks, "SLURM_PROCID", _SRUN)
            launch = _launch("SLURM_JOB_ID", "SLURM_STEP_ID")
            return cls(_number("SLURM_PROCID"), _number(tasks), _number("SLURM_LOCALID"), launch)
        return cls()

    def mine(self, batches: Sequence[T]) -> list[T]:
        return [batch for index, batch in enumerate(batches) if index % self.ranks == self.rank]


def _number(name: str) -> int:
    try:
        return int(os.environ.get(name, "0"))
    except ValueError:
        raise UserError(
            f"the environment has {name}={os.environ[name]}, which is not a number; unset it, or start with torchrun"
        ) from None


def _refuse_left_over(ranks: str, rank: str, set_by_launcher: Sequence[str]) -> None:
    missing = [name for name in set_by_launcher if not os.environ.get(name)]
    number, of = _number(rank), _number(ranks)
    if of > 1 and missing:
        raise UserError(
            f"{rank}={number} and {ranks}={of} make this process one of several that share an "
            f"evaluation, but {missing[0]} is not set, as a launcher does: unset {rank} and {ranks} if they are left over "
            "from another launch, or start all ranks with torchrun or srun"
        )


def _names() -> str:
    """The variables that indicate other ranks."""
    return ", ".join(name for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS") if name in os.environ)


def _launch(*names: str) -> str:
    return safe_name("-".join(os.environ.get(name, "") for name in names))


@contextmanager
def sole_writer(folders: Iterable[Path], share: Share) -> Iterator[None]:
    """Makes this process the only one that writes the records of its rank in the folders of evaluations.

    A process alone waits for another one that works there. Ranks of several do not: each would wait for one of the other
    launch, which waits for its own.

    Raises:
        UserError: another process works there, and this one is one of several; or a folder cannot be written.
    """
    with ExitStack() as held:
        for folder in sorted(set(folders)):  # in one order, so that no two processes wait for each other
            alone = share.ranks == 1
            held.enter_context(hold(folder, f"rank{share.rank}", "an evaluation", wait=alone, launch=this_job()))
        yield


class Meeting:
    """Lets the processes of one launch end together, through small files in a shared folder.

    Each writes a heartbeat every few seconds, and finally that it is done or why it failed. A process without a
    heartbeat for five minutes counts as dead: the others end with an error, and rerunning the same command resumes.

    Args:
        folder: gets a file per process, in a subfolder per launch.
        share: this process; if it is alone it writes nothing and waits for nobody.
    """

    def __init__(self, folder: Path, share: Share, every: float = _EVERY, silence: float = _SILENCE) -> None:
        self.share, self.every, self.silence = share, every, silence
        self.folder = folder / ".ranks" / (share.launch or "launch")
        self._me = uuid.uuid4().hex
        self._beats = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._before: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> "Meeting":
        if self.share.ranks > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._before = {rank: self._sign_of(rank) for rank in range(self.share.ranks)}
            self._write_state("working")
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self.share.ranks > 1:
            self._write_state("done" if error is None else f"failed: {str(error) or type(error).__name__}")

    def wait_for_all(self, complete: Callable[[], bool], what: str) -> None:
        """For rank 0: returns when `complete` is true.

        Raises:
            UserError: another process failed, or has no heartbeat; `what` names what is missing then.
        """
        self._wait([rank for rank in range(self.share.ranks) if rank != self.share.rank], complete, what)

    def wait_for_results(self, there: Callable[[], bool], what: str) -> None:
        """For the other ranks: returns when rank 0 is done.

        Args:
            there: whether results exist; called if rank 0 was done before this process began, or an earlier
                launch of the same name was.

        Raises:
            UserError: rank 0 failed, or has no heartbeat.
        """
        self._wait([0], lambda: self._sign_of(0).get("state") == "done" and (self._is_news(0) or there()), what)

    def _wait(self, others: Sequence[int], over: Callable[[], bool], what: str) -> None:
        seen: dict[int, tuple[dict[str, Any], float]] = {}
        while not over():
            now = time.monotonic()
            for rank in others:
                sign = self._sign_of(rank)
                if str(sign.get("state")).startswith("failed") and self._is_news(rank):
                    raise UserError(f"rank {rank} of {self.share.ranks} {sign['state']}; so {what} are not complete")
                if rank not in seen or seen[rank][0] != sign:
                    seen[rank] = sign, now
            silent = [rank for rank in others if now - seen[rank][1] > self.silence]
            done = [rank for rank in others if seen[rank][0].get("state") == "done"]
            if silent and not set(others) - set(silent) - set(done):  # do not discard the others' work
                self._refuse(next((rank for rank in silent if rank not in done), silent[0]), what)
            time.sleep(self.every)

    def _refuse(self, rank: int, what: str) -> None:
        raise UserError(
            f"this is rank {self.share.rank} of {self.share.ranks}, and rank {rank} has not responded for "
            f"{self.silence:.0f} s, so {what} are not complete; rerun the same command to resume, and a process "
            f"that was started alone must not have {_names()} in its environment"
        )

    def _is_news(self, rank: int) -> bool:
        """Whether a rank gave its sign since this process began; another may be from an earlier launch of the same name."""
        return self._sign_of(rank) != self._before[rank]

    def _sign_of(self, rank: int) -> dict[str, Any]:
        try:
            sign = json.loads((self.folder / f"{rank}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return sign if isinstance(sign, dict) else {}

    def _write_state(self, state: str) -> None:
        with self._lock:
            if state == "working" and self._ended.is_set():
                return  # the last word is said
            self._beats += 1
            write_json(
                self.folder / f"{self.share.rank}.json",
                {"format": 1, "process": self._me, "state": state, "beats": self._beats},
            )

    def _beat(self) -> None:
        looks = round(_ALONE / (2 * self.every))
        while not self._ended.wait(2 * self.every):
            looks -= 1
            others = [rank for rank in range(self.share.ranks) if rank != self.share.rank]
            if looks == 0 and not any(self._is_news(rank) for rank in others):
                print_now(
                    f"no other of the {self.share.ranks} ranks has responded for {_ALONE:.0f} s; if this process was started "
                    f"alone, end it, and unset {_names()}, which are left over from another launch"
                )
            try:
                self._write_state("working")
            except OSError:  # the next one may succeed; who is silent for long is missed
                continue
