"""The rank of this process, and whether the launcher started as many processes as the trainer is configured for."""

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vita_audio_pl.errors import UserError
from vita_audio_pl.leaving import print_now
from vita_audio_pl.training.settings import TrainerConfig

if TYPE_CHECKING:  # the command line is checked before Lightning is imported
    from lightning.pytorch.strategies import Strategy

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # where Lightning looks for a rank, in its order
_NODES = ("NODE_RANK", "GROUP_RANK")
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_STARTED = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what Lightning gives the ranks that it starts
_TOLD = ("RANK", *_STARTED)
_LONG = 60.0  # seconds within which ranks that start together have met


def warn_while_waiting(strategy: "Strategy", settings: TrainerConfig, after: float = _LONG) -> None:
    """Make `strategy` log what it waits for if the other ranks do not join; its time limit is unchanged.

    Args:
        after: seconds before it logs.
    """
    meet = strategy.setup_environment
    ranked = any(
        os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    )  # else a port was set for this stage
    told = ", ".join(f"{name}={os.environ[name]}" for name in _TOLD if ranked and os.environ.get(name))

    def warn() -> None:
        print_now(
            f"still waiting for the other ranks of {settings.world_size}"
            + (
                f"; where {told} are left over from another launch, none will come: end it, and unset them"
                if told
                else ""
            )
        )

    def meet_and_tell() -> None:
        timer = threading.Timer(after, warn)
        timer.daemon = True
        timer.start()
        try:
            meet()
        finally:
            timer.cancel()

    if settings.world_size > 1:
        strategy.setup_environment = meet_and_tell  # type: ignore[method-assign]


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the first of all ranks, according to the launchers' variables."""
    return not any(
        int(environment.get(name) or 0) for name in (*_RANKS, *_NODES) if (environment.get(name) or "0").isdecimal()
    )


def is_one_of_several(settings: TrainerConfig, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the other ranks have been started with this process, rather than by it later."""
    launched = any(environment.get(name) for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK")) or _in_slurm(environment)
    return settings.world_size > 1 and launched


def _in_slurm(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("SLURM_NTASKS")) and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def rank_of_launch(settings: TrainerConfig, environment: Mapping[str, str] = os.environ) -> int:
    """The rank of this process among all training processes.

    A launcher (torchrun, srun, Lightning itself) sets each process's rank in environment variables. If they are left
    over in a shell or a container, a lone process would write nothing, or wait for others forever.

    Raises:
        UserError: variables are left over or incomplete, or imply another number of processes.
    """
    size, trainer = settings.world_size, f"trainer={settings.name}"

    def number(name: str, default: int) -> int:
        value = environment.get(name) or str(default)
        if not value.isdecimal():
            raise UserError(f"{name}={value} is not a rank or a number of ranks; unset it, or start with the launcher")
        return int(value)

    needed: tuple[str, ...] = ()
    if "TORCHELASTIC_RUN_ID" in environment:
        launcher, needed, counted_by, rank = "torchrun", _TORCHRUN, "WORLD_SIZE", number("RANK", 0)
    elif _in_slurm(environment):
        launcher, counted_by, rank = "SLURM", "SLURM_NTASKS", number("SLURM_PROCID", 0)
    else:
        node = number("NODE_RANK", number("GROUP_RANK", 0))
        rank = node * settings.devices + number("LOCAL_RANK", 0)
        if size > 1 and environment.get("LOCAL_RANK"):
            needed = _STARTED
        launcher, counted_by = "a launcher", "WORLD_SIZE"
    missing = [name for name in needed if not environment.get(name)]
    if missing:
        there = [f"{name}={environment[name]}" for name in (*needed, "TORCHELASTIC_RUN_ID") if environment.get(name)]
        raise UserError(
            f"{', '.join(there)} says that {launcher} started this process, but {', '.join(missing)} is not set: unset what "
            "is left over from another launch, or start it with the launcher"
        )
    # a batch script has the variables of its job, and may run one process beside what it starts with srun
    in_script = launcher == "SLURM" and size == 1 and number("SLURM_STEP_NUM_TASKS", 1) == 1
    if number(counted_by, size) != size and not in_script:
        raise UserError(
            f"{counted_by}={environment[counted_by]} says that {launcher} started {environment[counted_by]} processes, and "
            f"{trainer} is for {size} (trainer.devices x trainer.num_nodes): start that many, or unset {counted_by} if it "
            "is left over from another launch"
        )
    name = next((name for name in _RANKS if environment.get(name)), "")
    unknown = launcher == "a launcher"  # Lightning, or a person, set only LOCAL_RANK
    if size == 1:
        stray = number(name, 0) > 0
    elif name == "RANK":
        stray = unknown or number(name, 0) != rank
    else:
        stray = unknown and name == "SLURM_PROCID" and number(name, 0) > 0
    if stray:
        raise UserError(
            f"{name}={environment[name]} makes this process one rank of a launch, of which the first alone writes, but "
            + (
                f"{trainer} is for one process"
                if size == 1
                else "what else a launcher sets is missing or says otherwise"
            )
            + f": unset {name} if it is left over from another launch, or start all ranks with the launcher"
        )
    here = ("SLURM_LOCALID",) if launcher == "SLURM" else ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
    for name, last in zip(here, (settings.devices - 1, settings.devices), strict=False):
        if size > 1 and number(name, 0) > last:
            raise UserError(
                f"{name}={environment[name]} says that {launcher} started more processes on this node than the {settings.devices} of "
                f"{trainer}: give the processes of a node as trainer.devices and the nodes as trainer.num_nodes, or unset {name} "
                "if it is left over from another launch"
            )
    if rank >= size or (rank == 0 and not is_first_process(environment)):  # nobody would be the first
        name = next(name for name in (*_NODES, *_RANKS) if number(name, 0))
        raise UserError(
            f"{name}={environment[name]} is not the number of a node or rank of {trainer}, which has {settings.num_nodes} x "
            f"{settings.devices}: unset {name} if it is left over from another launch, or start that many nodes"
        )
    return rank
