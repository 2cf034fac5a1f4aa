"""Cost of a piece of work on this machine: CPU or device seconds, and additional memory."""

import ctypes
import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vita_audio_pl.errors import UserError


@dataclass(frozen=True)
class Cost:
    """seconds: CPU seconds of all threads on a CPU, elapsed seconds on a GPU; held_bytes: memory held before;
    peak_bytes: peak memory above that, 0 if not measured."""

    seconds: float
    held_bytes: int
    peak_bytes: int


def measure(work: Callable[[], Any], device: torch.device, memory: bool = False) -> tuple[Any, Cost]:
    """Result and cost of `work()`; on a CPU, `memory` makes the work slower: it has to start from fresh pages.

    Raises:
        UserError: the peak is requested on a system that does not report it.
    """
    gc.collect()
    return _on_gpu(work, device) if device.type == "cuda" else _on_cpu(work, memory)


def _on_gpu(work: Callable[[], Any], device: torch.device) -> tuple[Any, Cost]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held, start = torch.cuda.memory_allocated(device), time.perf_counter()
    result = work()
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return result, Cost(seconds, held, torch.cuda.max_memory_allocated(device) - held)


def _on_cpu(work: Callable[[], Any], memory: bool) -> tuple[Any, Cost]:
    if memory:
        _count_peak_anew()
    held, start = process_memory("VmRSS"), time.process_time()
    result = work()
    seconds = time.process_time() - start
    return result, Cost(seconds, held, process_memory("VmHWM") - held if memory else 0)


def _count_peak_anew() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise UserError(f"peak memory is read from /proc/self, which cannot be read here ({error})") from None


def _give_back_freed_memory() -> None:
    """The C library keeps freed blocks, which would hide what the next piece of work takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def process_memory(field: str) -> int:
    """Bytes that the system counts for this process: `VmRSS` now, `VmHWM` at most. What was freed has been given back."""
    _give_back_freed_memory()
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise UserError(f"memory is read from /proc/self/status, which does not say {field} here")
    return int(found.group(1)) * 1024
