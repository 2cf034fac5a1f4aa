"""Neural codecs of transformers (Mimi, DAC) behind the common protocol, from a local folder of `save_pretrained`.

Such a codec writes several codes per frame, one for each residual quantiser. They become one row of codes, frame by
frame: index `i` of level `l` is the code `l * entries + i`.
"""

import hashlib
import math
import reprlib
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import DacConfig, DacModel, MimiConfig, MimiModel, PreTrainedConfig, PreTrainedModel

from vita_audio_pl.codecs.protocol import CODEC_FILE, read_codec_file, write_codec_file
from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import Fields, read_json
from vita_audio_pl.foreign.pretrained import from_pretrained, loading
from vita_audio_pl.foreign.weights import open_safetensors

_PIECE_SECONDS = 60  # longer waves are encoded and decoded in pieces
_CONTEXT_SECONDS = 1.0  # decoded again before each chunk of a stream
_HELD_SECONDS = 0.08  # decoded again with the next chunk
_FADE = 128  # samples
_MOST = {
    "layer": 256,
    "num_": 256,
    "n_codebooks": 256,
    "dilation": 16,
    "kernel": 1024,
    "rati": 64,
    "rates": 64,
    "stride": 64,
    "hop": 8192,
}
"""What the numbers of a configuration may be, by a part of their names."""
_MOST_ENTRIES, _LARGEST_NUMBER, _LONGEST_FRAME = 64, 1_000_000, 8192
_MOST_MISSING = 1_000_000  # values; names of weights differ between versions of torch (weight norm)


class TransformersCodec:
    """Mimi or DAC with its first `levels` quantisers.

    Args:
        folder: holds `config.json` (model type `mimi` or `dac`) and safetensors weights; nothing is downloaded.
        levels: quantisers used; more sound better and make more codes.

    Raises:
        UserError: the folder is missing, damaged or of another kind, or the model has fewer quantisers.
    """

    name = "transformers"

    def __init__(self, folder: str | Path, levels: int = 1):
        self.folder = Path(folder)
        self.model = _loaded(self.folder)
        where = str(self.folder / "config.json")
        fields = Fields(
            self.model.config.to_dict() | {"frame_rate": getattr(self.model.config, "frame_rate", None)}, where
        )
        mimi = self.model.config.model_type == "mimi"
        available = fields.integer("num_quantizers" if mimi else "n_codebooks")
        if not 1 <= levels <= available:
            raise UserError(f"{self.folder} has {available} quantisers, so levels={levels} is not possible")
        self.levels = levels
        self.sample_rate = fields.integer("sampling_rate", least=2_000, most=192_000)
        self.samples_per_frame = (
            round(self.sample_rate / fields.number("frame_rate", least=1.0, most=1000.0))
            if mimi
            else fields.integer("hop_length", most=_LONGEST_FRAME)
        )
        self.codes_per_second = levels * self.sample_rate / self.samples_per_frame
        self._entries = fields.integer("codebook_size")
        self.codebook_size = levels * self._entries
        self.fingerprint = _fingerprint(self.model, levels)
        self._try_out()
        self.build = "transformers " + ".".join(transformers.__version__.split(".")[:2])

    def _try_out(self) -> None:
        """Encodes and decodes a moment of silence: whether a configuration can be computed with shows only then."""
        trial = copy(self)
        trial.model = deepcopy(self.model)  # Mimi keeps what it has computed with, in the type of that moment
        try:
            trial.decode(trial._encoded(np.zeros(4 * self.samples_per_frame, np.float32), 0)[: 2 * self.levels])
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.folder} cannot be used as a codec, by its configuration: {reason}") from None

    @classmethod
    def load(cls, folder: str | Path) -> "TransformersCodec":
        """Opens a folder with the `codec.json` that `save` wrote."""
        folder = Path(folder)
        header = read_codec_file(folder)
        if not isinstance(header.get("model"), str) or "\0" in header["model"] or type(header.get("levels")) is not int:
            raise UserError(f"{folder / CODEC_FILE}: 'model' must be a path and 'levels' a whole number")
        codec = cls(folder / header["model"], header["levels"])
        if codec.fingerprint != header.get("fingerprint"):
            raise UserError(f"{codec.folder} is not the model that {folder / CODEC_FILE} was saved with")
        return codec

    def save(self, folder: str | Path) -> None:
        """Writes `codec.json`, which points to the model's folder; the weights stay where they are."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        header = {
            "name": self.name,
            "model": str(self.folder.resolve()),
            "levels": self.levels,
            "fingerprint": self.fingerprint,
        }
        write_codec_file(folder, header)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "TransformersCodec":
        """Moves the model."""
        cast(torch.nn.Module, self.model).to(
            device, dtype
        )  # transformers' wrapper of `to` has a signature without `self`
        return self

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes `(frames * levels,) int32` of each wave `(samples,) float`, cut every 60 s.

        Raises:
            UserError: a wave is empty, has several channels, or holds NaN or infinite samples.
        """
        return [self._encoded(wave, number) for number, wave in enumerate(waves)]

    @torch.inference_mode()
    def _encoded(self, wave: np.ndarray, number: int) -> np.ndarray:
        wave = np.asarray(wave, np.float32)
        if wave.ndim != 1 or not len(wave) or not np.isfinite(wave).all():
            raise UserError(f"wave {number} of shape {wave.shape} is empty, not one channel, or not finite")
        frame = self.samples_per_frame
        samples = torch.from_numpy(np.pad(wave, (0, -len(wave) % frame))).to(self.model.device, self.model.dtype)
        levels = torch.arange(self.levels, device=self.model.device)[:, None] * self._entries
        piece = _PIECE_SECONDS * self.sample_rate // frame * frame
        quantisers = "num_quantizers" if self.model.config.model_type == "mimi" else "n_quantizers"
        encode: Callable[..., Any] = self.model.encode
        rows = [
            encode(part[None, None], **{quantisers: self.levels}).audio_codes[0] + levels
            for part in samples.split(piece)
        ]
        return torch.cat(rows, dim=1).T.flatten().to("cpu", torch.int32).numpy()

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Wave `(frames * samples_per_frame,) float32`; codes of an unfinished frame at the end are left out.

        A code counts by its index within its level, also where a model wrote the levels out of turn.

        Raises:
            UserError: a code is not in the codebook.
        """
        stream = self.decode_stream()
        frames_at_once = _PIECE_SECONDS * self.sample_rate // self.samples_per_frame
        parts = [
            stream.push(codes[start : start + frames_at_once * self.levels])
            for start in range(0, len(codes), frames_at_once * self.levels)
        ]
        return np.concatenate([*parts, stream.finish()])

    def decode_batch(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Waves of several code sequences, one after the other."""
        return [self.decode(row) for row in codes]

    def decode_stream(self) -> "WindowedStream":
        """A stream that decodes each chunk with what came before it and fades the chunks into one another."""
        seconds_per_frame = self.samples_per_frame / self.sample_rate
        return WindowedStream(
            self._frames_of,
            self._decoded,
            samples_per_frame=self.samples_per_frame,
            context=round(_CONTEXT_SECONDS / seconds_per_frame),
            held=max(1, round(_HELD_SECONDS / seconds_per_frame)),
            codes_per_frame=self.levels,
        )

    def _frames_of(self, codes: np.ndarray) -> np.ndarray:
        """Indices `(frames, levels)` of a whole number of frames."""
        if len(codes) and not (0 <= codes.min() and codes.max() < self.codebook_size):
            raise UserError(f"a code lies outside the codebook of {self.codebook_size} entries")
        return codes.reshape(-1, self.levels) % self._entries

    @torch.inference_mode()
    def _decoded(self, frames: np.ndarray) -> np.ndarray:
        """Wave of `frames: (frames, levels)`, exactly `samples_per_frame` samples each."""
        codes = torch.from_numpy(frames.T.astype(np.int64))[None].to(self.model.device)
        decode: Callable[..., Any] = self.model.decode
        wave: Tensor = decode(audio_codes=codes).audio_values.reshape(-1).to("cpu", torch.float32)
        wanted = len(frames) * self.samples_per_frame
        return torch.nn.functional.pad(wave[:wanted], (0, max(0, wanted - len(wave)))).clamp(-1, 1).numpy()

    def silence(self, n: int) -> np.ndarray:
        """The first `n` codes of digital silence, `(n,) int32`."""
        if n == 0:
            return np.empty(0, np.int32)
        return self.encode([np.zeros(-(-n // self.levels) * self.samples_per_frame, np.float32)])[0][:n]


class WindowedStream:
    """A `DecodeStream` over any function that decodes whole frames.

    Each chunk is decoded with `context` frames before it; its last `held` frames are decoded again with the next chunk,
    into which the wave fades.
    """

    def __init__(
        self,
        frames_of: Callable[[np.ndarray], np.ndarray],
        decode: Callable[[np.ndarray], np.ndarray],
        *,
        samples_per_frame: int,
        context: int,
        held: int,
        codes_per_frame: int,
    ):
        self._frames_of, self._decode = frames_of, decode
        self._frame, self._context, self._held = samples_per_frame, context, held
        self._codes_per_frame = codes_per_frame
        self._codes = np.empty(0, np.int64)  # of an unfinished frame
        self._frames = np.empty((0, codes_per_frame), np.int64)  # context, then frames that were not handed out
        self._open = 0  # frames not handed out
        self._tail = np.empty(0, np.float32)  # their wave so far

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Takes `codes: (n,) integer` and returns the samples that are now final."""
        codes = np.concatenate((self._codes, np.asarray(codes, np.int64)))
        whole = len(codes) // self._codes_per_frame * self._codes_per_frame
        self._codes = codes[whole:]
        new = self._frames_of(codes[:whole])
        if not len(new):
            return np.empty(0, np.float32)
        self._frames = np.concatenate((self._frames, new))
        self._open += len(new)
        wave = self._decode(self._frames)[(len(self._frames) - self._open) * self._frame :].copy()
        fade = min(_FADE, len(self._tail))
        rise = np.linspace(0, 1, fade + 2, dtype=np.float32)[1:-1]
        wave[:fade] = wave[:fade] * rise + self._tail[:fade] * (1 - rise)
        final = max(0, self._open - self._held)
        self._open -= final
        self._frames = self._frames[-(self._open + self._context) :]
        self._tail = wave[final * self._frame :]
        return wave[: final * self._frame]

    def finish(self) -> np.ndarray:
        """Returns the wave of the frames held back; the stream takes nothing after it."""
        return self._tail


_MODELS: dict[str, tuple[type[PreTrainedModel], type[PreTrainedConfig]]] = {
    "mimi": (MimiModel, MimiConfig),
    "dac": (DacModel, DacConfig),
}


def _loaded(folder: Path) -> MimiModel | DacModel:
    values = read_json(folder / "config.json")
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in _MODELS:
        raise UserError(f"{folder}/config.json is not that of a codec known here ({', '.join(_MODELS)})")
    model_class, config_class = _MODELS[model_type]
    _check_sizes(values, f"{folder / 'config.json'}")
    with open_safetensors(folder / "model.safetensors") as file:
        held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    with loading(folder, "codec"):
        with torch.device("meta"):
            wanted = model_class(config_class(**values)).state_dict()
        _check_shapes(held, {name: tuple(tensor.shape) for name, tensor in wanted.items()}, folder)
        return cast(MimiModel | DacModel, from_pretrained(model_class, folder, "codec", use_safetensors=True).eval())


def _check_sizes(values: Any, where: str, depth: int = 0) -> None:
    """Refuses numbers that no codec has, before a model is built with them: it could take all time or memory."""
    inner: Any = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in inner:
        most = next((most for part, most in _MOST.items() if part in str(name)), _LARGEST_NUMBER)
        number = _as_number(value)
        if (
            (number is not None and not abs(number) <= most)
            or (isinstance(value, list) and len(value) > _MOST_ENTRIES)
            or depth > 4
        ):
            raise UserError(f"{where}: {str(name)[:60]} is {reprlib.repr(value)}, more than any codec here has")
        _check_sizes(value, where, depth + 1)


def _as_number(value: Any) -> float | None:
    """A number, also one that is written as text: transformers takes it for one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None if isinstance(value, str) else math.inf


def _check_shapes(held: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Refuses weights that do not fit the configuration, before memory is taken for them."""
    for name in wanted.keys() & held.keys():
        if wanted[name] != held[name]:
            raise UserError(
                f"{folder}: the tensor '{name[:80]}' has shape {held[name]}, but config.json asks for {wanted[name]}"
            )
    missing = [name for name in wanted if name not in held]
    if sum(math.prod(wanted[name]) for name in missing) > _MOST_MISSING:
        raise UserError(f"{folder} lacks {len(missing)} tensors that config.json calls for, such as '{missing[0]}'")


def _fingerprint(model: PreTrainedModel, levels: int) -> str:
    digest = hashlib.blake2b(f"{model.config.model_type} {levels}".encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
