"""Safetensors folders: read strictly and one tensor at a time, written in shards."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import read_json, read_json_if_there
from vita_audio_pl.foreign.weights import open_safetensors
from vita_audio_pl.models.quantised import is_quantised_part
from vita_audio_pl.models.tensor_file import LateTensor, file_order, write_tensors
from vita_audio_pl.storage.checksums import CHECKSUMS, FileSum, read_checksums, sum_of_files, verify
from vita_audio_pl.storage.owned import lists

log = logging.getLogger(__name__)

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"
_LARGEST_INDEX = 16 << 20  # bytes
_TYPES = ("F64", "F32", "F16", "BF16")
_WHOLE = {torch.int8: "I8", torch.uint8: "U8"}  # of quantised layers


class WeightFolder:
    """Tensors of a folder in the Hugging Face layout: `model.safetensors`, or shards and their index.

    Args:
        single: another name of the file with all tensors.

    Raises:
        UserError: the folder has no weights, a shard is missing, a file is cut short or not safetensors, or its bytes are
            not those whose checksums were written beside it.
    """

    def __init__(self, folder: Path | str, single: str = SINGLE):
        self.folder = Path(folder)
        index = self.folder / INDEX
        if (self.folder / single).is_file():
            verify_model_files(self.folder, [single])
            with self._open(single) as file:
                self._files = dict.fromkeys(file.keys(), single)
        elif single == SINGLE and index.is_file():
            verify_model_files(self.folder, [INDEX])
            self._files = self._listed(read_json(index, largest=_LARGEST_INDEX).get("weight_map"))
            verify_model_files(self.folder, sorted(set(self._files.values())))
        else:
            raise UserError(
                f"{self.folder} has neither {single} nor {INDEX}; give a folder with safetensors weights{_instead(self.folder)}"
            )

    def _listed(self, weight_map: object) -> dict[str, str]:
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) and name == Path(name).name for name in weight_map.values()
        ):
            raise UserError(f"{self.folder / INDEX} does not list files of its own folder; copy the whole folder again")
        return dict(weight_map)

    def _open(self, name: str) -> Any:
        return open_safetensors(self.folder / name, f"{INDEX} lists it; copy the whole folder again")

    def keys(self) -> list[str]:
        return list(self._files)

    def file_of(self, key: str) -> str:
        """Name of the file that holds a tensor."""
        return self._files[key]

    def shapes(self, whole: Mapping[str, torch.dtype] | None = None) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor; no tensor is read.

        whole: keys of integers, and their types; None allows any key those that quantised layers have.

        Raises:
            UserError: another tensor is not of floating-point numbers, or one of these not of its type.
        """
        shapes = {}
        for key, file in self._each(self.keys()):
            found = file.get_slice(key)
            allowed = (
                (*_TYPES, *_WHOLE.values()) if whole is None else (_WHOLE[whole[key]],) if key in whole else _TYPES
            )
            if found.get_dtype() not in allowed:
                raise UserError(
                    f"the tensor '{key[:80]}' in {self.folder / self._files[key]} has type {found.get_dtype()}; weights have "
                    f"{', '.join(_TYPES if whole is None else allowed)}"
                )
            shapes[key] = tuple(found.get_shape())
        return shapes

    def tensors(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors by key, file after file, each checked to be finite.

        Raises:
            UserError: a tensor holds NaN or infinity.
        """
        for key, file in self._each(keys):
            tensor: Tensor = file.get_tensor(key)
            if not is_finite(tensor):
                raise UserError(f"the tensor '{key}' in {self.folder / self._files[key]} holds NaN or infinity")
            yield key, tensor

    def rows(self, key: str, first: int, last: int) -> Tensor:
        """Rows of a tensor; the others are not read.

        Raises:
            UserError: one of them holds NaN or infinity.
        """
        with self._open(self._files[key]) as file:
            tensor: Tensor = file.get_slice(key)[first:last]
        if not is_finite(tensor):
            raise UserError(f"the tensor '{key}' in {self.folder / self._files[key]} holds NaN or infinity")
        return tensor

    def _each(self, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Each key with the opened file that holds it."""
        by_file: dict[str, list[str]] = {}
        for key in keys:
            by_file.setdefault(self._files[key], []).append(key)
        for name, wanted in by_file.items():
            with self._open(name) as file:
                held = set(file.keys())
                for key in wanted:
                    if key not in held:
                        raise UserError(f"{self.folder / name} lacks the tensor '{key}' that {INDEX} places there")
                    yield key, file


def verify_model_files(folder: Path, names: Collection[str] | None = None) -> None:
    """Compares files of a model folder with the checksums that its writer left; folders from elsewhere have none.

    Args:
        names: which files; None is all but the weights, which are verified by whoever reads them.

    Raises:
        UserError: bytes are not what was written; names the file and them.
    """
    sums = read_checksums(folder)
    remedy = (
        "copy the model folder again, or delete it and give the command that made it again; if you have changed the file "
        f"yourself, run python -m vita_audio_pl.checksums folder={folder} write=true"
    )
    if sums is None and lists(folder, CHECKSUMS):
        raise UserError(f"{folder / CHECKSUMS} is missing, with which this folder was written; {remedy}")
    if sums is None:
        _warn_unchecked(folder.absolute())
        return
    for name in names or ():
        if name not in sums and (folder / name).exists():
            raise UserError(f"{folder / name} was not written with this folder: {CHECKSUMS} does not list it; {remedy}")
    wanted = [name for name in sums if (name in names if names is not None else "/" in name or not is_weights(name))]
    verify(folder, {name: sums[name] for name in wanted}, remedy)


def tensor_names(folder: Path, single: str = SINGLE) -> list[str]:
    """Names of the tensors in a folder's weights; nothing but headers is read, and nothing is verified."""
    if not (folder / single).is_file():
        index = read_json_if_there(folder / INDEX, largest=_LARGEST_INDEX) if single == SINGLE else {}
        return list(index.get("weight_map") or ())
    with open_safetensors(folder / single, "copy the whole folder again") as file:
        return list(file.keys())


def folder_weights(folder: Path) -> str:
    """Hash of the weights of a model folder: the one that its manifest tells, or that of its files' bytes."""
    told = read_json_if_there(folder / "manifest.json").get("weights")
    return str(told) if told else weights_hash(_sums(folder))


def weights_hash(written: Mapping[str, FileSum]) -> str:
    """Hash of the weights among the files of a model folder, by name and content (32 hex digits)."""
    weights = sorted((name, written[name].to_json()) for name in written if "/" not in name and is_weights(name))
    return hashlib.blake2b(json.dumps(weights).encode(), digest_size=16).hexdigest()


def _sums(folder: Path) -> Mapping[str, FileSum]:
    known = read_checksums(folder)
    if known is not None:
        return known
    paths = sorted(path for path in folder.iterdir() if is_weights(path.name))
    return _sums_of(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@cache
def _sums_of(versions: tuple[tuple[Path, int, int], ...]) -> Mapping[str, FileSum]:
    """By name; the versions' sizes and times distinguish files that are written again."""
    return {path.name: found for path, found in sum_of_files([path for path, *_ in versions]).items()}


def is_weights(name: str) -> bool:
    """Whether a file of a model folder holds its weights."""
    return name.endswith(".safetensors")


@cache
def _warn_unchecked(folder: Path) -> None:
    if (folder / "manifest.json").is_file():
        log.warning(
            "%s was written by an older version, without checksums; python -m vita_audio_pl.checksums folder=%s write=true "
            "adds them",
            *(folder, folder),
        )


def check_fit(module: nn.Module, folder: WeightFolder, names: dict[str, str]) -> None:
    """Refuses a folder that does not hold just the parameters of `module`.

    Args:
        names: file key -> parameter name; the two sides have to match exactly.

    Raises:
        UserError: a key is missing or not known, or a shape differs.
    """
    types = {key: module.get_parameter(name).dtype for key, name in names.items()}
    shapes = folder.shapes({key: dtype for key, dtype in types.items() if dtype in _WHOLE})
    missing, extra = sorted(names.keys() - shapes.keys()), sorted(shapes.keys() - names.keys())
    if missing or extra:
        said = [f"{what} {_some(keys)}" for what, keys in (("lacks", missing), ("has, unexpectedly,", extra)) if keys]
        raise UserError(f"{folder.folder} does not fit the model its config.json describes: it {' and '.join(said)}")
    for key, name in names.items():
        expected = tuple(module.get_parameter(name).shape)
        if shapes[key] != expected:
            raise UserError(
                f"the tensor '{key}' in {folder.folder} has shape {shapes[key]}, but config.json asks for {expected}"
            )


def load_strictly(
    module: nn.Module,
    folder: WeightFolder,
    names: dict[str, str],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    done: Callable[[str], None] = lambda name: None,
) -> None:
    """Replaces the parameters of `module`, which may be on the meta device, by the tensors of `folder`.

    Args:
        names: as for `check_fit`.
        dtype: converted to; None keeps each tensor's own, and what quantised layers hold always is.
        device: where the parameters go.
        done: called with the name of each parameter that is in place.

    Raises:
        UserError: as `check_fit`; or a value is not finite.
    """
    check_fit(module, folder, names)
    for key, tensor in folder.tensors(names):
        owner, _, attribute = names[key].rpartition(".")
        old = module.get_parameter(names[key])
        kept = tensor.dtype if is_quantised_part(names[key]) else dtype
        value = nn.Parameter(tensor.to(device=device, dtype=kept), requires_grad=old.requires_grad)
        setattr(module.get_submodule(owner), attribute, value)
        done(names[key])


def save_weights(
    tensors: Mapping[str, Tensor | LateTensor], folder: Path | str, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Writes tensors as `model.safetensors`, or as shards of `max_shard_bytes` at most with an index, one after another.

    Raises:
        UserError: a tensor holds NaN or infinity, or the folder holds weights already; no weights are left there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if there := next(folder.glob("*.safetensors"), None):
        raise UserError(f"{folder} holds weights already ({there.name}): give a new folder")
    late = {key: LateTensor.of(value) if isinstance(value, Tensor) else value for key, value in tensors.items()}
    shards: list[dict[str, LateTensor]] = [{}]
    filled = 0
    for key, tensor in late.items():
        if shards[-1] and filled + tensor.bytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][key] = tensor
        filled += tensor.bytes
    total = len(shards)
    names = [SINGLE] if total == 1 else [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
    try:
        for name, shard in zip(names, shards, strict=True):
            layout = {key: (tensor.dtype, tensor.shape) for key, tensor in shard.items()}
            write_tensors(folder / name, layout, (_finite(key, shard[key].read()) for key in file_order(layout)))
    except UserError:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        raise
    if total > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        size = sum(tensor.bytes for tensor in late.values())
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _finite(key: str, tensor: Tensor) -> Tensor:
    if not is_finite(tensor):
        raise UserError(f"'{key}' cannot be written as weights: not all values are finite")
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    The least and the greatest value suffice, without the temporaries of `isfinite`: 0.2 s/GB in float32 on one thread, not 5.6.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    least, greatest = torch.aminmax(tensor.detach())
    return math.isfinite(least) and math.isfinite(greatest)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _instead(folder: Path) -> str:
    """What a folder without safetensors weights may need."""
    if not any(folder.glob("pytorch_model*.bin")):
        return ""
    return (
        "; it has pytorch_model.bin, a pickle, which is not read: load it with transformers and save it by "
        "save_pretrained, or get the revision that has safetensors"
    )


def _some(keys: list[str], shown: int = 5) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(f"'{key}'" for key in keys[:shown]) + more
