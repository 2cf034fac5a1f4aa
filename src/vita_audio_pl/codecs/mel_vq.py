"""mel_vq: a speech codec that needs no download, fitted in seconds to the speech it will carry.

Encoding: log-mel frames, stacked, projected by PCA, the nearest of the k-means centroids. Decoding: the centroid's mel
frames, a non-negative spectrum for them, Griffin-Lim. The spectra of a code never change, so they are found once.
"""

import hashlib
import json
import math
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vita_audio_pl.codecs import spectral
from vita_audio_pl.codecs.protocol import CODEC_FILE, read_codec_file, write_codec_file
from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.weights import open_safetensors

WEIGHTS_FILE = "codec.safetensors"


_RANGES = {
    "sample_rate": (2_000, 192_000),
    "hop": (2, 4096),
    "frames_per_code": (1, 1000),
    "n_mels": (1, 512),
    "pca_size": (1, 4096),
    "codebook_size": (1, 65_536),
    "griffin_lim_iterations": (1, 1000),
}
"""What decoding can do in bounded time and memory, so that a codec from elsewhere cannot ask for more."""


@dataclass(frozen=True)
class MelVQConfig:
    """Shape of a `mel_vq` codec; the defaults give 12.5 codes/s."""

    sample_rate: int = 16_000
    hop: int = 128
    frames_per_code: int = 10
    n_mels: int = 80
    pca_size: int = 64
    codebook_size: int = 512
    quietest: float = 1e-5  # mel amplitudes below this count as silence
    griffin_lim_iterations: int = 16

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"mel_vq: {name} must be a whole number from {least} to {most}, not {reprlib.repr(value)}"
                )
        if type(self.quietest) is not float or not 0 < self.quietest < 1:
            raise ValueError(f"mel_vq: quietest must lie between 0 and 1, not {reprlib.repr(self.quietest)}")
        if self.frames_per_code < spectral.OVERLAP:
            raise ValueError(f"mel_vq: frames_per_code must be at least {spectral.OVERLAP}, the frames of a window")
        if self.hop % 2:
            raise ValueError(f"mel_vq: hop is {self.hop}, and must be even")
        if self.pca_size > self.n_mels * self.frames_per_code:
            raise ValueError("mel_vq: pca_size exceeds n_mels * frames_per_code")

    @property
    def samples_per_code(self) -> int:
        return self.hop * self.frames_per_code

    @property
    def bins(self) -> int:
        return spectral.OVERLAP * self.hop // 2 + 1


class MelVQ:
    """Fitted codec. Works on one CPU thread, on purpose: its matrices are small and training wants the other cores.

    Args:
        mean: `(frames_per_code * n_mels,)`, mean of the stacked log-mel frames.
        basis: `(frames_per_code * n_mels, pca_size)`, orthonormal columns.
        centroids: `(codebook_size, pca_size)`.
    """

    name = "mel_vq"

    def __init__(self, config: MelVQConfig, mean: Tensor, basis: Tensor, centroids: Tensor) -> None:
        self.config = config
        self.sample_rate = config.sample_rate
        self.codes_per_second = config.sample_rate / config.samples_per_code
        self.codebook_size = config.codebook_size
        self._weights = {"mean": mean.contiguous(), "basis": basis.contiguous(), "centroids": centroids.contiguous()}
        for key, shape in _shapes(config).items():
            if tuple(self._weights[key].shape) != shape:
                raise ValueError(f"mel_vq: {key} has shape {tuple(self._weights[key].shape)}, not {shape}")
        self.fingerprint = _fingerprint(config, self._weights)

    @classmethod
    def fit(cls, waves: Sequence[np.ndarray], config: MelVQConfig | None = None, seed: int = 0) -> "MelVQ":
        """Fits the projection and the codebook to speech; the same waves, configuration and seed give the same codec.

        Args:
            waves: `(samples,) float32` each, at `config.sample_rate`; some minutes are enough.

        Raises:
            UserError: there is less audio than the codebook needs.
        """
        config = config or MelVQConfig()
        with _one_thread():
            stacked = _stacked_log_mels(_padded(waves, config), config)
            if len(stacked) < 2 * config.codebook_size:
                seconds = len(stacked) * config.samples_per_code / config.sample_rate
                raise UserError(
                    f"mel_vq: {seconds:.1f} s of audio are too few for {config.codebook_size} codes; "
                    f"give at least {2 * config.codebook_size * config.samples_per_code / config.sample_rate:.0f} s"
                )
            mean = stacked.mean(dim=0)
            stacked -= mean
            _, vectors = torch.linalg.eigh(stacked.T @ stacked)
            basis = vectors[:, -config.pca_size :].flip(1)
            generator = torch.Generator().manual_seed(seed)
            centroids = _k_means(stacked @ basis, config.codebook_size, generator)
        return cls(config, mean, basis, centroids)

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes `(ceil(samples / samples per code),) int32` of each wave `(samples,) float32` at `sample_rate` Hz.

        Raises:
            UserError: a wave is empty, not one channel, or has NaN or infinite samples.
        """
        if not waves:
            return []
        with _one_thread():
            padded = _padded(waves, self.config)
            stacked = _stacked_log_mels(padded, self.config)
            points = stacked.sub_(self._weights["mean"]) @ self._weights["basis"]
            codes = _nearest(points, self._weights["centroids"]).int()
        counts = [len(wave) // self.config.samples_per_code for wave in padded]
        return [part.numpy() for part in codes.split(counts)]

    def encode_stream(self) -> "MelVQEncodeStream":
        """A stream that takes audio at `sample_rate` as it comes and hands out codes as they become final."""
        return MelVQEncodeStream(self)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Wave `(n * samples per code,) float32` of `codes: (n,) integer`."""
        return self.decode_batch([codes])[0]

    def decode_batch(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Waves of several code sequences, each what `decode` gives for it."""
        # One after another: the spectra of one utterance fit the processor's cache, those of a batch do not
        return [self._decoded(self._checked(sequence)) for sequence in codes]

    def _decoded(self, codes: Tensor) -> np.ndarray:
        if not len(codes):
            return np.zeros(0, np.float32)
        edge = (spectral.OVERLAP - 1) * self.config.hop // 2
        with _one_thread():
            magnitudes = self._spectra[codes].flatten(0, 1)[None]
            phases = spectral.first_phases(*magnitudes.shape[1:])
            decoded = spectral.griffin_lim(magnitudes, self.config.hop, self.config.griffin_lim_iterations, phases)[0]
            return decoded[edge : edge + len(codes) * self.config.samples_per_code].clamp(-1, 1).numpy()

    def decode_stream(self) -> "MelVQStream":
        """A fresh stream decoder."""
        return MelVQStream(self)

    def silence(self, n: int) -> np.ndarray:
        """`n` times the code of digital silence, `(n,) int32`."""
        return np.full(n, self._silent_code, dtype=np.int32)

    @cached_property
    def _silent_code(self) -> int:
        return int(self.encode([np.zeros(self.config.samples_per_code, np.float32)])[0][0])

    @cached_property
    def _spectra(self) -> Tensor:
        """Spectral magnitudes of every code, `(codebook_size, frames_per_code, bins)`."""
        config = self.config
        with _one_thread():
            filters = spectral.mel_filters(config.sample_rate, spectral.OVERLAP * config.hop, config.n_mels)
            log_mel = self._weights["centroids"] @ self._weights["basis"].T + self._weights["mean"]
            mel = log_mel.view(-1, config.n_mels).exp()
            mel = torch.where(mel > config.quietest * 1.5, mel, 0.0)  # what is near the floor was silence
            spectra = spectral.invert_mel(mel, filters) * spectral.hann(config.hop).sum()
        return spectra.view(config.codebook_size, config.frames_per_code, config.bins)

    def _checked(self, codes: np.ndarray) -> Tensor:
        codes = np.asarray(codes)
        if codes.ndim != 1 or (codes.size and not np.issubdtype(codes.dtype, np.integer)):
            raise ValueError(f"mel_vq: codes must be a row of integers, not {codes.dtype} of shape {codes.shape}")
        if codes.size and not (0 <= codes.min() and codes.max() < self.codebook_size):
            raise ValueError(f"mel_vq: codes must lie in 0..{self.codebook_size - 1}")
        return torch.from_numpy(codes.astype(np.int64))

    def save(self, folder: Path) -> None:
        """Writes `codec.json` and `codec.safetensors` into `folder`, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._weights, folder / WEIGHTS_FILE)
        header = {"name": self.name, "config": asdict(self.config), "fingerprint": self.fingerprint}
        write_codec_file(folder, header)

    @classmethod
    def load(cls, folder: Path) -> "MelVQ":
        """Reads what `save` wrote.

        Raises:
            UserError: a file is missing or damaged, a key is unknown or missing, or the weights are not those saved.
        """
        folder = Path(folder)
        header = read_codec_file(folder)
        if header["name"] != cls.name or set(header) != {"name", "config", "fingerprint"}:
            raise UserError(f"{folder / CODEC_FILE} does not describe a mel_vq codec (keys: {', '.join(header)})")
        config = _read_config(header["config"], folder / CODEC_FILE)
        path = folder / WEIGHTS_FILE
        with open_safetensors(path, f"{folder} is not complete") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}
            found = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
            wanted = {key: (shape, "F32") for key, shape in _shapes(config).items()}
            if found != wanted:
                told = reprlib.repr(found)
                raise UserError(f"{path} holds {told}, but a codec of this configuration holds {wanted}")
            codec = cls(config, **{key: file.get_tensor(key) for key in wanted})
        if not all(bool(weight.isfinite().all()) for weight in codec._weights.values()):
            raise UserError(f"{path} holds values that are not finite; fetch it again")
        if codec.fingerprint != header["fingerprint"]:
            raise UserError(f"{path} does not belong to {folder / CODEC_FILE}: its contents have another fingerprint")
        return codec


class MelVQEncodeStream:
    """Codes of a wave that arrives bit by bit, each as soon as the 1.5 hops behind it are heard: those of the whole wave.

    Attributes:
        changed: codes handed out that later audio would give otherwise; none ever.
    """

    changed = 0

    def __init__(self, codec: MelVQ) -> None:
        self._codec = codec
        self._wave = np.empty(0, np.float32)  # from one code before the first that is not handed out, if there is one
        self._before = 0  # codes at its beginning that are there for their overlap alone

    def push(self, wave: np.ndarray) -> np.ndarray:
        """Takes `wave: (samples,) float` and returns the codes that became final, `(n,) int32`."""
        self._wave = np.concatenate((self._wave, np.asarray(wave, np.float32)))
        size, reach = self._codec.config.samples_per_code, (spectral.OVERLAP - 1) * self._codec.config.hop // 2
        ready = (len(self._wave) - reach) // size
        if ready <= self._before:
            return np.empty(0, np.int32)
        codes = self._codec.encode([self._wave[: ready * size + reach]])[0][self._before : ready]
        self._wave, self._before = self._wave[(ready - 1) * size :], 1
        return codes

    def finish(self) -> np.ndarray:
        """Returns the codes still held back, the last one filled up with silence."""
        if len(self._wave) <= self._before * self._codec.config.samples_per_code:
            return np.empty(0, np.int32)
        return self._codec.encode([self._wave])[0][self._before :]


class MelVQStream:
    """Griffin-Lim in steps: samples once returned are fixed, and what follows is fitted to them, so no seam is heard.

    The last 1.5 hops are held back until the next codes tell how they go on.
    """

    def __init__(self, codec: MelVQ) -> None:
        self._codec = codec
        self._magnitudes = torch.zeros(0, codec.config.bins)  # of the last frames, as many as overlap the next one
        self._settled = torch.zeros(0)  # samples from the beginning of those frames to the beginning of the next
        self._held_back = torch.zeros(0)
        self._finished = False

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Takes `codes: (n,) integer`; returns the samples now final, `(samples,) float32`."""
        if self._finished:
            raise ValueError("mel_vq: this stream is finished; start another with decode_stream()")
        new = self._codec._checked(codes)
        if len(new) == 0:
            return np.zeros(0, np.float32)
        hop, iterations = self._codec.config.hop, self._codec.config.griffin_lim_iterations
        edge = (spectral.OVERLAP - 1) * hop // 2
        beginning = len(self._settled) == 0
        with _one_thread():
            magnitudes = torch.cat([self._magnitudes, self._codec._spectra[new].flatten(0, 1)])
            phases = spectral.first_phases(*magnitudes.shape)
            if not beginning:
                phases = phases * spectral.unit(spectral.analyse(self._settled[None], hop)[0])
            known = None if beginning else self._settled[None]
            wave = spectral.griffin_lim(magnitudes[None], hop, iterations, phases[None], known)[0]
        end = len(magnitudes) * hop  # where the next frame will begin
        final = wave[edge if beginning else len(self._settled) : end]
        self._magnitudes, self._settled = magnitudes[-spectral.OVERLAP :], wave[end - spectral.OVERLAP * hop : end]
        self._held_back = wave[end : end + edge]
        return final.clamp(-1, 1).numpy().copy()

    def finish(self) -> np.ndarray:
        """Returns the samples held back, `(samples,) float32`."""
        self._finished = True
        held_back, self._held_back = self._held_back, torch.zeros(0)
        return held_back.clamp(-1, 1).numpy().copy()


def _shapes(config: MelVQConfig) -> dict[str, tuple[int, ...]]:
    stacked = config.frames_per_code * config.n_mels
    return {
        "mean": (stacked,),
        "basis": (stacked, config.pca_size),
        "centroids": (config.codebook_size, config.pca_size),
    }


def _fingerprint(config: MelVQConfig, weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for key in sorted(weights):
        digest.update(key.encode() + weights[key].numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_config(values: Any, where: Path) -> MelVQConfig:
    known = {field.name for field in fields(MelVQConfig)}
    if not isinstance(values, dict) or set(values) != known:
        raise UserError(f"{where}: 'config' must have exactly the keys {', '.join(sorted(known))}")
    try:
        return MelVQConfig(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def _padded(waves: Sequence[np.ndarray], config: MelVQConfig) -> list[Tensor]:
    """Waves as tensors, filled up with silence to whole codes."""
    padded = []
    for number, wave in enumerate(waves):
        wave = np.asarray(wave, dtype=np.float32)
        if wave.ndim != 1 or len(wave) == 0:
            raise UserError(f"wave {number} has shape {wave.shape}: a wave to encode is one channel, not empty")
        if not np.isfinite(wave).all():
            raise UserError(f"wave {number} has NaN or infinite samples")
        codes = math.ceil(len(wave) / config.samples_per_code)
        filled = np.zeros(codes * config.samples_per_code, np.float32)
        filled[: len(wave)] = wave
        padded.append(torch.from_numpy(filled))
    return padded


def _stacked_log_mels(waves: list[Tensor], config: MelVQConfig) -> Tensor:
    """Log-mel frames of each code in a row: `(codes, frames_per_code * n_mels)`."""
    filters = spectral.mel_filters(config.sample_rate, spectral.OVERLAP * config.hop, config.n_mels)
    mel = spectral.mel_frames(waves, config.hop, filters)
    return mel.clamp_(min=config.quietest).log_().view(-1, config.frames_per_code * config.n_mels)


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Number of the centroid nearest to each of `points: (n, size)`."""
    half_norms = centroids.square().sum(dim=1) / 2
    return torch.cat([(half_norms - part @ centroids.T).argmin(dim=1) for part in points.split(8192)])


def _k_means(points: Tensor, count: int, generator: torch.Generator, rounds: int = 20, most: int = 40_000) -> Tensor:
    """Centroids of `points: (n, size)` by Lloyd's rounds from a k-means++ start: `(count, size)`."""
    points = points[torch.randperm(len(points), generator=generator)[:most]]
    centroids = points[torch.randint(len(points), (1,), generator=generator)]
    distances = (points - centroids[0]).square().sum(dim=1)
    norms = points.square().sum(dim=1)
    for _ in range(count - 1):
        chosen = points[torch.multinomial(distances + 1e-12, 1, generator=generator)]
        centroids = torch.cat([centroids, chosen])
        distances = torch.minimum(distances, (norms - 2 * (points @ chosen[0]) + chosen.square().sum()).clamp(min=0))
    for _ in range(rounds):
        owners = _nearest(points, centroids)
        sizes = torch.bincount(owners, minlength=count)
        sums = torch.zeros_like(centroids).index_add_(0, owners, points)
        lost = sizes == 0
        centroids = sums / sizes.clamp(min=1)[:, None]
        if lost.any():  # an empty cluster starts again at a random point
            fresh = torch.randint(len(points), (int(lost.sum()),), generator=generator)
            centroids[lost] = points[fresh]
    return centroids


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs torch on one thread: two threads fight over work this small and cost ten times the CPU time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
