"""What a rank writes, copied to host memory before the next step changes it, and written meanwhile."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vita_audio_pl.models.tensor_file import Layout, file_order
from vita_audio_pl.models.weight_files import is_finite
from vita_audio_pl.training.checkpoints.parts import this_ranks_share
from vita_audio_pl.training.engines.base import Engine

_PIECE = 64 << 20  # bytes that are copied at once
_ALWAYS_HELD = 256 << 20  # bytes of copies that a rank may hold beside what trains in host memory
_SHARE_HELD = 6  # or this part of what it writes, a twelfth of weights, gradients and moments


class HostCopy:
    """Ranges of flat tensors that one thread copies (`take`) while another writes the copies (`pieces`).

    What lies on a GPU is copied as a whole at once: host memory has room for it, and steps are short. What trains in host
    memory is copied only as far ahead of the disk as fits beside it, since a second copy of weights and moments would not;
    a step of a model of that size takes far longer there than its checkpoint.

    Args:
        values: by `<kind>/<name>`, on any one device.
        starts: the first element of each in its whole tensor.

    Attributes:
        not_finite: those that hold NaN or infinity, of what has been written.
    """

    def __init__(self, values: Mapping[str, Tensor], starts: Mapping[str, int]) -> None:
        self.starts = dict(starts)
        self.layout: Layout = {key: (value.dtype, tuple(value.shape)) for key, value in values.items()}
        self.not_finite: list[str] = []
        total = sum(value.nbytes for value in values.values())
        self._may_hold = held_in_host_memory(total)
        self._left = deque((key, values[key]) for key in file_order(self.layout))
        self._copies: deque[tuple[str, Tensor]] = deque()
        self._held = 0
        self._given_up = False
        self._changed = threading.Condition()

    @classmethod
    def of(cls, engine: Engine, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> "HostCopy":
        """Of what this rank writes of a model and its optimiser. Not collective."""
        held = engine.held(model, optimizer)
        values, starts = {}, {}
        for name, cut in this_ranks_share(engine, held).items():
            for kind, value in held[name].tensors.items() if cut.stop > cut.start else ():
                values[f"{kind}/{name}"] = value.detach()[cut]
                starts[f"{kind}/{name}"] = held[name].start + cut.start
        return cls(values, starts)

    def take(self) -> None:
        """Copies everything; returns when no copy is missing, or nobody will write them."""
        if any(value.is_cuda for _, value in self._left):
            copies = [(key, _pinned(value)) for key, value in self._left]
            torch.cuda.current_stream().synchronize()
            with self._changed:
                self._copies.extend(copies)
                self._left.clear()
                self._changed.notify_all()
            return
        while self._left:
            key, value = self._left[0]
            for piece in value.split(max(1, _PIECE // value.itemsize)):
                with self._changed:
                    self._changed.wait_for(lambda: self._held < self._may_hold or self._given_up)
                    if self._given_up:
                        return
                copy = piece.clone()
                with self._changed:
                    self._copies.append((key, copy))
                    self._held += copy.nbytes
                    self._changed.notify_all()
            with self._changed:
                self._left.popleft()
                self._changed.notify_all()

    def pieces(self) -> Iterator[Tensor]:
        """The copies in `file_order`, each let go when the next is asked for."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._copies or not self._left)
                if not self._copies:
                    return
                key, copy = self._copies.popleft()
            if key not in self.not_finite and not is_finite(copy):
                self.not_finite.append(key)
            yield copy
            with self._changed:
                self._held -= copy.nbytes
                del copy
                self._changed.notify_all()

    def give_up(self) -> None:
        """Nobody writes the copies: whoever makes them need not go on."""
        with self._changed:
            self._given_up = True
            self._copies.clear()
            self._changed.notify_all()


def held_in_host_memory(total: int) -> int:
    """Bytes of copies that a rank which trains in host memory may hold while it writes `total` bytes."""
    return max(_ALWAYS_HELD, total // _SHARE_HELD)


def _pinned(value: Tensor) -> Tensor:
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return copy.copy_(value, non_blocking=True)
