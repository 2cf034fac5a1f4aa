"""A SLURM on this machine: a controller and two node daemons, all in one folder, for as long as a block lasts.

`python local_slurm.py FOLDER COMMAND...` runs a command with it, for a look by hand. It needs root and Debian's packages:
`scripts/system-packages.sh munge slurmctld slurmd`.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PACKAGES = ("munge", "slurmctld", "slurmd")
NODES = ("n1", "n2")
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
MinJobAge=3600
ReturnToService=2
JobRequeue=1
KillWait={kill_wait}
SlurmctldTimeout=30
SlurmdTimeout={silent}
InactiveLimit=0
GresTypes=gpu
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=2000 Gres=gpu:8
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=2000 Gres=gpu:8
PartitionName=main Nodes=n1,n2 Default=YES State=UP PriorityTier=1 GraceTime={grace} MaxTime=INFINITE
PartitionName=urgent Nodes=n1,n2 State=UP PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE
"""


def why_not() -> str:
    """Why no SLURM can be started here; empty where one can. Missing packages are installed."""
    if os.getuid() != 0:
        return "SLURM's daemons are started as root, and this user is not"
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        return "SLURM's nodes are process namespaces, and root may make none here"
    script = Path(__file__).parents[2] / "scripts" / "system-packages.sh"
    installed = subprocess.run(["sh", str(script), *PACKAGES], capture_output=True, text=True, check=False)
    return "" if installed.returncode == 0 else f"SLURM cannot be installed: {installed.stderr.strip()}"


class LocalSlurm:
    """Commands to a running cluster.

    Args:
        folder: of its configuration, logs and state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MASTER_ADDR": "127.0.0.1",  # the nodes' names are no addresses
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str, folder: Path | None = None, **environment: str) -> str:
        """What a command prints; `sbatch`, `squeue`, `scontrol` and whatever calls them."""
        own = self.environment | environment
        done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` tells: JobState, Restarts, ExitCode and so on."""
        told = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(\S*)", told))

    def states(self, *jobs: str) -> list[str]:
        return [self.job(job)["JobState"] for job in jobs]

    def idle(self) -> int:
        """Nodes that have nothing to do."""
        return self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split().count("idle")

    def start_now(self, job: str) -> None:
        """A job that was put back into the queue need not wait for its two minutes."""
        time.sleep(2)  # SLURM revokes what it had allowed a job up to the second in which it was put back
        with suppress(AssertionError):  # it has started meanwhile
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def start_daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def start_node(self, node: str) -> None:
        """In a process namespace of its own, so that to others its processes are those of another machine."""
        self.start_daemon(node, *NAMESPACE, "slurmd", "-D", "-N", node)

    def lose_node(self, node: str) -> list[psutil.Process]:
        """A node that falls silent: all that runs there stands still.

        Returns:
            Those processes, to be resumed.
        """
        lost = psutil.Process(self._daemons[node].pid).children(recursive=True)
        for process in lost:
            process.suspend()
        return lost

    def end(self) -> None:
        """Ends every process of the cluster: jobs, nodes, controller, munge."""
        for daemon in reversed(list(self._daemons.values())):
            below = psutil.Process(daemon.pid).children(recursive=True) if daemon.poll() is None else []
            for process in [daemon, *below]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            daemon.wait()


@contextmanager
def local_slurm(folder: Path, kill_wait: int = 10, grace: int = 60, silent: int = 10) -> Iterator[LocalSlurm]:
    """A running cluster of two nodes with eight processors and eight pretended GPUs each.

    Its partition `urgent` preempts jobs of `main`, which are put back into the queue.

    Args:
        kill_wait: seconds between SIGTERM and SIGKILL.
        grace: seconds that a preempted job is given.
        silent: seconds without a word after which a node counts as lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir()
    held = [socket.socket() for _ in range(3)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    settings = CONFIGURATION.format(folder=folder, ports=ports, kill_wait=kill_wait, grace=grace, silent=silent)
    (folder / "slurm.conf").write_text(settings)
    for number in range(8):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    cluster = LocalSlurm(folder)
    for one in held:
        one.close()
    try:
        files = {name: folder / f"munge.{name}" for name in ("key", "socket", "pid", "log", "seed")}
        cluster.start_daemon(
            "munged", "munged", "--foreground", "--force", "--num-threads=2", f"--key-file={files['key']}",
            f"--socket={files['socket']}", f"--pid-file={files['pid']}", f"--log-file={files['log']}",
            f"--seed-file={files['seed']}",
        )  # fmt: skip
        _until(lambda: files["socket"].exists(), "munge", cluster)
        cluster.start_daemon("slurmctld", "slurmctld", "-D")
        for node in NODES:
            cluster.start_node(node)
        _until(lambda: cluster.idle() == len(NODES), "the nodes", cluster)
        yield cluster
    finally:
        cluster.end()


def _until(holds: Callable[[], bool], what: str, cluster: LocalSlurm) -> None:
    deadline = time.monotonic() + 60
    while True:
        with suppress(AssertionError):  # nobody answers yet
            if holds():
                return
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-1500:] for path in sorted(cluster.folder.glob("*.log")))
            raise AssertionError(f"{what} did not come up:\n{logs}")
        time.sleep(0.1)


if __name__ == "__main__":
    with local_slurm(Path(sys.argv[1]).absolute()) as here:
        raise SystemExit(subprocess.run(sys.argv[2:], env=here.environment).returncode)
