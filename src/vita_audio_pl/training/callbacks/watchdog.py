"""Names the rank that hangs: heartbeat files, and stack dumps after too long without progress."""

import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

_BEAT_EVERY = 1.0  # seconds between heartbeats on disk
_BEATS = 32.0  # heartbeats per second of all ranks, at most
COMPUTING, WAITING_FOR_DATA = "computing", "waiting for data"


class Watchdog(Callback):
    """Each rank records its progress; a thread checks that it advances.

    After `patience` seconds without progress every rank writes its stacks to `<folder>/stacks.rank-<r>.txt`, and rank 0
    names the ranks that are behind, and what each was doing. The run is not ended: a slow disk may recover.

    Args:
        folder: folder of `heartbeat.rank-<r>.json` and the stacks.
        patience: seconds without progress.
    """

    def __init__(self, folder: Path, patience: float) -> None:
        self.folder, self.patience = folder, patience
        self.alarms = 0
        self._state: dict[str, Any] = {}
        self._moved = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rank, self._ranks = trainer.global_rank, trainer.world_size
        self._note(trainer, WAITING_FOR_DATA)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._note(trainer, COMPUTING)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note(trainer, WAITING_FOR_DATA)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop.set()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._stop.set()

    def _note(self, trainer: L.Trainer, doing: str) -> None:
        self._moved = time.monotonic()
        self._state = {"step": trainer.global_step, "doing": doing, "since": time.time()}

    def _watch(self) -> None:
        seen = 0.0
        every = min(max(_BEAT_EVERY, self._ranks / _BEATS), self.patience / 4)
        while not self._stop.wait(every):
            beat = self.folder / f"heartbeat.rank-{self._rank}.json"
            if self._moved != seen:
                seen = self._moved
                beside = beat.with_suffix(".new")  # atomic, so that rank 0 never reads half a file
                beside.write_text(json.dumps({"format": 1, **self._state}), encoding="utf-8")
                beside.replace(beat)
            elif time.monotonic() - seen > self.patience:
                self._alarm()
                self._moved = seen = time.monotonic()  # the next alarm comes after the same time again

    def _alarm(self) -> None:
        stacks = self.folder / f"stacks.rank-{self._rank}.txt"
        with stacks.open("a", encoding="utf-8") as file:
            file.write(f"no progress for {self.patience:.0f} s, {time.ctime()}, {self._state}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        if self._rank == 0:
            print(f"watchdog: {self.report()}; stacks are in {stacks.parent}", file=sys.stderr, flush=True)
        self.alarms += 1

    def report(self) -> str:
        """One sentence on where every rank is, those behind first."""
        beats = {}
        for rank in range(self._ranks):
            path = self.folder / f"heartbeat.rank-{rank}.json"
            if path.exists():
                beats[rank] = json.loads(path.read_text(encoding="utf-8"))
        behind = sorted(beats, key=lambda rank: (beats[rank]["step"], beats[rank]["since"]))
        now = time.time()
        told = [
            f"rank {rank} has been {beats[rank]['doing']} for {now - beats[rank]['since']:.0f} s after step "
            f"{beats[rank]['step']}"
            for rank in behind[:3]
        ]
        silent = sorted(set(range(self._ranks)) - set(beats))
        missing = f"; no heartbeat of ranks {silent}" if silent else ""
        return f"no progress for {self.patience:.0f} s: " + ", ".join(told) + missing


def record_collectives(folder: Path) -> None:
    """Record NCCL's last collectives, for `folder/nccl.<rank>` after a time-out; call before the process group exists."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(folder / "nccl."),
    }.items():
        os.environ.setdefault(name, value)
