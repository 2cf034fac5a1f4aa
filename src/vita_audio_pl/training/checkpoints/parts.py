"""What lies where in a checkpoint: parts are written and read by ranges of elements, and verified while they are read.

A rank's part holds ranges of flattened tensors. `part-<r>.json`, sealed, lists the checksums of what the rank wrote and, of
each tensor in the part, type, first element, the one after the last, and first byte.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.models.tensor_file import TYPES, LateTensor, Layout, write_tensors
from vita_audio_pl.storage.checksums import (
    FileSum,
    VerifiedFile,
    find_damage,
    parse_checksums,
    read_sealed,
    size_damage,
    sum_of_files,
    unsealed,
    write_checksums,
)
from vita_audio_pl.training.checkpoints.folders import FORMAT, STATE, flush, step_of
from vita_audio_pl.training.checkpoints.rng import check_rng_state
from vita_audio_pl.training.engines.base import AVERAGE, WEIGHT, Engine, Held


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `stop` of a flattened tensor, from byte `offset` of a part's file on."""

    part: str
    type: str
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose small files are in order, and whose parts have their sizes.

    Attributes:
        state: `state.json`.
        parts: checksums of the parts' files, by name.
        pieces: of each tensor, by `<kind>/<name of the parameter>`, in order.
    """

    path: Path
    state: dict[str, Any]
    parts: dict[str, FileSum]
    pieces: dict[str, list[Piece]]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def kinds(self) -> dict[str, list[str]]:
        """What is stored of each parameter: its weight, and moments by the names that its optimiser gives them."""
        found: dict[str, list[str]] = {}
        for kind, _, name in sorted(key.partition("/") for key in self.pieces):
            found.setdefault(name, []).append(kind)
        return found

    def read(self, wanted: Iterable[tuple[str, int, Tensor]]) -> int:
        """Fill tensors, each of some elements, flat, with what is stored; bytes that were read for it.

        Args:
            wanted: key, first element, and the tensor.

        Raises:
            ValueError: a block that is needed is not what was written; or elements are missing.
        """
        work: dict[str, list[tuple[int, Piece, int, Tensor]]] = {}
        for key, start, target in wanted:
            filled = 0
            for piece in self.pieces.get(key, ()):
                first, last = max(start, piece.start), min(start + len(target), piece.stop)
                if first < last:
                    width = TYPES[piece.type].itemsize
                    into = target[first - start : last - start]
                    byte = piece.offset + (first - piece.start) * width
                    work.setdefault(piece.part, []).append((byte, piece, width, into))
                    filled += last - first
            if filled != len(target):
                raise ValueError(
                    f"{self.path} has {filled} of the elements {start} to {start + len(target)} of '{key}'"
                )
        total = 0
        for part, items in work.items():
            with VerifiedFile(self.path / part, self.parts[part]) as file:
                for byte, piece, width, into in sorted(items, key=lambda item: item[0]):
                    data = bytearray(len(into) * width)
                    file.read_into(byte, data)
                    into.copy_(torch.frombuffer(data, dtype=TYPES[piece.type]))
                total += file.bytes_read
        return total


def part_name(rank: int) -> str:
    """Name of the file with a rank's tensors."""
    return f"part-{rank:05d}.safetensors"


def rng_name(rank: int) -> str:
    """Name of the file with the state of a rank's random generators, and what else it keeps for itself."""
    return f"rng-{rank:05d}.json"


def part_index(rank: int) -> str:
    """Name of the file that lists what a rank wrote."""
    return f"part-{rank:05d}.json"


def shares(held: Mapping[str, Held], ranks: int) -> list[dict[str, slice]]:
    """Elements of each parameter's range that each of `ranks`, which hold the same, writes and reads: equal in bytes."""
    widths = {name: sum(value.itemsize for value in each.tensors.values()) for name, each in held.items()}
    lengths = {name: len(next(iter(each.tensors.values()))) for name, each in held.items()}
    ends = dict(zip(held, accumulate(widths[name] * lengths[name] for name in held), strict=True))
    total = max(ends.values(), default=0)

    def at(name: str, cut: int) -> int:
        begins = ends[name] - widths[name] * lengths[name]
        return min(lengths[name], max(0, cut - begins) // widths[name])

    cuts = [total * rank // ranks for rank in range(ranks + 1)]
    return [{name: slice(at(name, first), at(name, last)) for name in held} for first, last in pairwise(cuts)]


def this_ranks_share(engine: Engine, held: Mapping[str, Held]) -> dict[str, slice]:
    """What this rank writes and reads of what it holds."""
    if engine.copies is None:
        return shares(held, 1)[0]
    return shares(held, dist.get_world_size(engine.copies))[dist.get_rank(engine.copies)]


def write_part(
    folder: Path,
    rank: int,
    layout: Layout,
    pieces: Iterable[Tensor],
    starts: Mapping[str, int],
    own: dict[str, Any],
) -> list[Path]:
    """Write one rank's files, onto the disk.

    Args:
        layout: of flat ranges of tensors, by `<kind>/<name>`; pieces: their values, as `write_tensors` takes them.
        starts: the first element of each.
        own: the rank's random generators, and what else it keeps for itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part, random = folder / part_name(rank), folder / rng_name(rank)
    offsets = write_tensors(part, layout, pieces, {"format": str(FORMAT)})
    random.write_text(json.dumps(own), encoding="utf-8")
    flush(part)
    flush(random)
    names = {dtype: name for name, dtype in TYPES.items()}
    listed = {
        key: [names[dtype], starts[key], starts[key] + math.prod(shape), offsets[key]]
        for key, (dtype, shape) in layout.items()
    }
    sums = {path.name: found for path, found in sum_of_files([part, random]).items()}
    write_checksums(folder, sums, part_index(rank), pieces=listed)
    return [part, random, folder / part_index(rank)]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint.

    Raises:
        OSError, ValueError: it cannot be read.
        UserError: it is of another version's format.
    """
    path = checkpoint / STATE
    try:
        state = read_sealed(path)
    except UserError as error:
        state = _read_object(path)
        if "format" not in state or "seal" in state or state["format"] == FORMAT:
            raise ValueError(str(error)) from error
    if state["format"] != FORMAT:
        raise UserError(
            f"the checkpoint {checkpoint} has format {state['format']}; this version reads {FORMAT}: use the version "
            "that wrote it, or start over with force=true"
        )
    return state


def open_checkpoint(path: Path, ranks: Iterable[int] | None = None) -> Checkpoint:
    """A checkpoint, its small files read and verified; of the parts the sizes alone are looked at.

    Args:
        ranks: whose files have to be there; None asks for those of all ranks that wrote.

    Raises:
        ValueError: it is damaged; says what.
        UserError: it has the format of another version, and may be in order.
        OSError: the machine cannot read now, and it may be in order.
    """
    at = path / STATE
    try:
        state = read_state(path)
        step, wrote = state.get("step"), state.get("ranks")
        if step != step_of(path) or not isinstance(wrote, int):
            raise ValueError(f"it is of step {step} and of {wrote} ranks")
        parts: dict[str, FileSum] = {}
        pieces: dict[str, list[Piece]] = {}
        for rank in range(wrote) if ranks is None else ranks:
            part, rng, at = part_name(rank), rng_name(rank), path / part_index(rank)
            data = at.read_bytes()
            try:
                sums, listed = parse_checksums(at, data), unsealed(at, data)["pieces"]
            except UserError as error:
                raise ValueError(str(error)) from error
            parts[part] = sums[part]
            for key, values in listed.items():
                pieces.setdefault(key, []).append(Piece(part, *values))
            at = path / part
            for damage in filter(None, [size_damage(at, parts[part].bytes)]):
                raise ValueError(damage.problem)
            at = path / rng
            for damage in find_damage(path, {rng: sums[rng]}):
                raise ValueError(damage.problem)
            check_rng_state(_read_object(at))
    except (OSError, ValueError, KeyError) as error:
        if is_machine_fault(error):
            raise
        raise ValueError(f"{at} is missing, cut or damaged ({error})") from error
    return Checkpoint(path, state, parts, {key: sorted(each, key=lambda p: p.start) for key, each in pieces.items()})


def weights_of_checkpoint(folder: Path) -> dict[str, LateTensor]:
    """Whole weights of the parameters that trained, by name, in the precision that was updated; frozen ones are the parent's.

    Where a callback averages the weights, these are the averages, which the stage would hand over. To read one that is
    damaged raises a UserError, too.

    Raises:
        UserError: it is no checkpoint, is damaged, or has the format of another version.
    """
    with _refused(folder):
        checkpoint = open_checkpoint(folder)
        found = {}
        for name, shape in checkpoint.state["shapes"].items():
            key = next(key for kind in (AVERAGE, WEIGHT) if (key := f"{kind}/{name}") in checkpoint.pieces)
            dtype = TYPES[checkpoint.pieces[key][0].type]
            found[name] = LateTensor(dtype, tuple(shape), partial(_whole, checkpoint, key, dtype, shape))
        return found


def _whole(checkpoint: Checkpoint, key: str, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    value = torch.empty(math.prod(shape), dtype=dtype)
    with _refused(checkpoint.path):
        checkpoint.read([(key, 0, value)])
    return value.view(*shape)


@contextmanager
def _refused(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise UserError(f"the checkpoint {folder} cannot be used: {error}; choose another one") from error


def damage(path: Path, ranks: Iterable[int] | None = None) -> str | None:
    """What is wrong with the bytes of a checkpoint, all of which are read; None where they are what was written.

    Args, Raises: as `open_checkpoint`, but for ValueError.
    """
    try:
        checkpoint = open_checkpoint(path, ranks)
        return next((str(found) for found in find_damage(path, checkpoint.parts)), None)
    except ValueError as error:
        return str(error)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested without end") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value
