"""Several gloo ranks without the start of a process: forked, so that nothing is imported again."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch


def run_ranks(function: Callable[[int], Any], folder: Path, ranks: int = 2) -> list[Any]:
    """What `function(rank)` returns on each rank, as JSON; a rank that fails prints its traceback and gives None."""
    folder.mkdir(parents=True, exist_ok=True)
    children = [os.fork() or _rank(function, rank, ranks, folder) for rank in range(ranks)]
    for child in children:
        os.waitpid(child, 0)
    answers = [folder / f"answer-{rank}.json" for rank in range(ranks)]
    return [json.loads(path.read_text()) if path.exists() else None for path in answers]


def _rank(function: Callable[[int], Any], rank: int, ranks: int, folder: Path) -> int:
    status = 1
    try:
        torch.set_num_threads(1)  # the parent's threads are not there after a fork
        store = torch.distributed.FileStore(str(folder / "store"), ranks)
        torch.distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=300)
        )
        answer = function(rank)
        (folder / f"answer-{rank}.json").write_text(json.dumps(answer))
        torch.distributed.barrier()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
    return 0
