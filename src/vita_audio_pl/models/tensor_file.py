"""Safetensors files written piece by piece: they take the memory of a piece, where safetensors' own writer copies all."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types by the names that the format gives them."""
_NAMES = {dtype: name for name, dtype in TYPES.items()}


@dataclass(frozen=True)
class LateTensor:
    """A tensor that is made when it is needed, by `read`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "LateTensor":
        """A tensor that is there."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor.detach())

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


Layout = Mapping[str, tuple[torch.dtype, Sequence[int]]]
"""Type and shape of tensors by name."""


def file_order(layout: Layout) -> list[str]:
    """The order in which tensors lie in a file: widest types first, so that each begins at a multiple of its width."""
    return sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))


def write_tensors(
    path: Path, layout: Layout, pieces: Iterable[Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Writes a safetensors file; first byte of each tensor in it.

    Args:
        pieces: the tensors in `file_order`, whole or in any number of pieces.
        metadata: of the header; None says that torch has written it.

    Raises:
        ValueError: there were more or fewer bytes than `layout` has.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    begins = {}
    end = 0
    for name in file_order(layout):
        dtype, shape = layout[name]
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begins[name] = begin
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    with path.open("wb") as file:
        file.write(len(described).to_bytes(8, "little") + described)
        for piece in pieces:
            file.write(piece.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        if file.tell() != 8 + len(described) + end:
            raise ValueError(f"{path} got {file.tell() - 8 - len(described)} bytes of tensors, and has place for {end}")
    return {name: 8 + len(described) + begin for name, begin in begins.items()}
