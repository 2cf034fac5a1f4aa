"""What every speech codec offers, and how a saved one is found again.

A codec folder holds `codec.json`, whose `name` says which class reads the folder. A new codec is one file: a class with
the members of `Codec`, and `register_codec("its_name", TheClass.load)` where that file is imported.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vita_audio_pl.config.plugins import load_inherited_plugins
from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import read_json
from vita_audio_pl.storage.files import write_json

CODEC_FILE = "codec.json"
CODEC_FORMAT = 3
"""2 since `mel_vq` has a network in its decoder, 3 since it keeps speech; folders of earlier formats are read as they are."""


class DecodeStream(Protocol):
    """Turns codes that arrive bit by bit into one unbroken wave."""

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Takes `codes: (n,) integer` and returns the samples that are now final, `(samples,) float32`."""
        ...

    def finish(self) -> np.ndarray:
        """Returns what `push` held back, `(samples,) float32`; the stream takes nothing after it."""
        ...


class SoundSource(Protocol):
    """What makes sound of codes as they come: a codec, or another process that has it.

    Attributes:
        sample_rate: of the sound, Hz.
    """

    sample_rate: int

    def decode_stream(self) -> DecodeStream:
        """A fresh stream."""
        ...


@runtime_checkable
class Codec(Protocol):
    """A speech codec: mono waves in [-1, 1] at `sample_rate` Hz to integers in `[0, codebook_size)` and back.

    `fingerprint` tells weights and settings apart. A codec may have a text `build` beside it, to be changed when its
    program gives other codes for the same weights, and a method `to(device, dtype)`; both, and the type that it computes
    in, keep codes of different origin out of one source. A method `push_streams(streams, codes)` yields what `push` gives of
    each of its streams for its codes; if it raises, the streams whose sound has not come are as they were. Where one vector
    stands for each code, a method `codebook()` gives them, `(codebook_size, width) float32`; codes whose vectors point the
    same way are taken to sound alike (`verify=groups`).
    """

    name: str
    sample_rate: int
    codes_per_second: float
    codebook_size: int
    fingerprint: str

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes `(n,) int32` of each wave `(samples,) float32`; a UserError says which wave is empty or not finite."""
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Wave `(samples,) float32` of `codes: (n,) integer`."""
        ...

    def decode_batch(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Waves of several code sequences, as `decode` gives them one by one."""
        ...

    def decode_stream(self) -> DecodeStream:
        """A fresh stream: the chunks it returns, joined, are as long as the whole wave and sound like it."""
        ...

    def silence(self, n: int) -> np.ndarray:
        """`n` codes of silence, `(n,) int32`."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the folder that `load_codec` reads."""
        ...


_LOADERS: dict[str, Callable[[Path], Codec]] = {}
_BUILT_IN = {
    "mel_vq": ("vita_audio_pl.codecs.mel_vq", "MelVQ"),
    "glm4voice": ("vita_audio_pl.codecs.glm4voice", "GLM4VoiceCodec"),
    "transformers": ("vita_audio_pl.codecs.hf_codec", "TransformersCodec"),
}


def register_codec(name: str, loader: Callable[[Path], Codec]) -> None:
    """Makes `load_codec` use `loader` for folders whose `codec.json` carries this `name`."""
    if name in _BUILT_IN or _LOADERS.get(name, loader) is not loader:
        raise ValueError(f"a codec named '{name}' is registered already")
    _LOADERS[name] = loader


def load_codec(folder: str | Path, device: str = "cpu", dtype: str = "float32") -> Codec:
    """Loads the codec saved in `folder`.

    Args:
        device: where its networks run; a codec without the method `to(device, dtype)` stays on the CPU.
        dtype: that they compute in: float32, bfloat16 or float16.

    Raises:
        UserError: the folder is no codec folder, names a codec that is not known here, or there is no such device.
    """
    folder = Path(folder)
    name = read_codec_file(folder)["name"]
    if name not in (*_BUILT_IN, *_LOADERS):
        load_inherited_plugins()
    if name in _BUILT_IN:
        module, cls = _BUILT_IN[name]
        codec: Codec = getattr(import_module(module), cls).load(folder)
    elif name in _LOADERS:
        codec = _LOADERS[name](folder)
    else:
        known = ", ".join(sorted(_BUILT_IN | _LOADERS))
        raise UserError(
            f"{folder / CODEC_FILE} asks for the codec '{name}', which is not known (known: {known}; plugins=[PACKAGE] registers yours)"
        )
    if (device, dtype) != ("cpu", "float32") and hasattr(codec, "to"):
        codec.to(*_checked_place(device, dtype))
    return codec


def _checked_place(device: str, dtype: str) -> tuple[str, Any]:
    """The device and torch's type of that name."""
    import torch  # only codecs with networks need it

    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"the codec cannot compute in '{dtype}'; choose float32, bfloat16 or float16")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"the codec was to run on {device}, but there is no GPU here; use cpu")
    return device, getattr(torch, dtype)


def write_codec_file(folder: Path, header: Mapping[str, Any]) -> None:
    """Writes `folder/codec.json`, whole or not at all; header: what `read_codec_file` gives again."""
    write_json(folder / CODEC_FILE, {"format": CODEC_FORMAT, **header})


def read_codec_file(folder: Path) -> dict[str, Any]:
    """The contents of `folder/codec.json` but for its format, checked to be an object with a `name`.

    Raises:
        UserError: the file is missing, is not JSON, is of a later format, or has no name.
    """
    path = folder / CODEC_FILE
    if not path.exists():
        raise UserError(f"{folder} is not a codec folder: it has no {CODEC_FILE}")
    header = read_json(path)
    version = header.pop("format", 1)  # the first ones do not say
    if type(version) is not int or not 1 <= version <= CODEC_FORMAT:
        raise UserError(
            f"{path} has format {version!r:.50}, this version reads up to {CODEC_FORMAT}: update this program"
        )
    if not isinstance(header.get("name"), str):
        raise UserError(f"{path} does not name its codec: it needs a key 'name'")
    return header
