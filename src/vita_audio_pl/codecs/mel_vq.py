"""mel_vq: a speech codec that needs no download, fitted in seconds to the speech it will carry.

Encoding: log-mel frames, stacked, projected by PCA, the nearest of the k-means centroids. Decoding: the spectra of the
codes in their context, then Griffin-Lim: those of speech that was heard with the same codes (`unit_selection.py`), and what a
small network makes of the codes where there is none (`context_decoder.py`). Codecs of earlier versions have no such speech, or
no network either: there a code always sounds alike, a non-negative spectrum for the centroid's mel frames.
"""

import hashlib
import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.codecs import spectral
from vita_audio_pl.codecs.clustering import k_means, nearest
from vita_audio_pl.codecs.context_decoder import REACH, ContextDecoder
from vita_audio_pl.codecs.mel_vq_config import MelVQConfig, read_config
from vita_audio_pl.codecs.mel_vq_streams import Context, MelVQEncodeStream, MelVQStream
from vita_audio_pl.codecs.protocol import CODEC_FILE, read_codec_file, write_codec_file
from vita_audio_pl.codecs.unit_selection import BOUNDARY, Units
from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.weights import open_safetensors
from vita_audio_pl.storage.files import save_safetensors

WEIGHTS_FILE = "codec.safetensors"
_DECODER, _UNITS = "decoder.", "units."
_ENVELOPE = 16  # cosines of a log-mel frame
_NEAR_SILENCE = 1.5  # times the quietest amplitude: what is nearer to it was silence
_SPOKEN_CODES = 256  # so many codes at most, and half of them, are fitted to the voice that is spoken in
_WHOLE_NUMBERS = {_UNITS + "codes": "I32", _UNITS + "parts": "I8"}
_SPOKEN_TIMES = 3  # the decoder reads the voice that will be spoken in so many times as often as others


class MelVQ:
    """Fitted codec. Works on one CPU thread, on purpose: its matrices are small and training wants the other cores.

    Args:
        weights: `mean (frames_per_code * n_mels,)` of the stacked log-mel frames, `basis (frames_per_code * n_mels,
            pca_size)` with orthonormal columns, `centroids (codebook_size, pca_size)`, and `decoder.*`, the state of a
            `ContextDecoder`, where the configuration asks for one; then there may be `units.*`, what `Units` takes.
    """

    name = "mel_vq"

    def __init__(self, config: MelVQConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self.sample_rate = config.sample_rate
        self.codes_per_second = config.sample_rate / config.samples_per_code
        self.codebook_size = config.codebook_size
        self._weights = {key: weight.contiguous() for key, weight in weights.items()}
        found = {key: tuple(weight.shape) for key, weight in weights.items()}
        wanted = _shapes(config, _n_units(found))
        if found != wanted:
            raise ValueError(f"mel_vq: the weights have the shapes {reprlib.repr(found)}, not {reprlib.repr(wanted)}")
        self.fingerprint = _fingerprint(config, self._weights)
        self._decoder = _decoder(config)
        if self._decoder is not None:
            self._decoder.load_state_dict(self._part(_DECODER), assign=True)
            self._decoder.requires_grad_(False)
        units = self._part(_UNITS)
        self._units = Units(**units) if units else None

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): weight for key, weight in self._weights.items() if key.startswith(prefix)}

    @classmethod
    def fit(
        cls,
        waves: Sequence[np.ndarray],
        config: MelVQConfig | None = None,
        seed: int = 0,
        spoken: Sequence[np.ndarray] = (),
    ) -> "MelVQ":
        """Fits projection, codebook and decoder to speech; the same arguments give the same codec.

        The projection sees the envelope of each frame and not the pitch: codes tell what is said.

        Args:
            waves: `(samples,) float32` each, at `config.sample_rate`; some minutes are enough.
            spoken: more, of the voice that will be spoken in: half of the codes, or 256, are fitted to it alone, and the decoder
                learns it more often.

        Raises:
            UserError: there is less audio than the codebook needs, or nothing in it.
        """
        config = config or MelVQConfig()
        if len(spoken) and config.codebook_size < 2:
            raise UserError(f"mel_vq: a codebook of {config.codebook_size} cannot be shared by two kinds of speech")
        with _one_thread():
            padded = [*_padded(spoken, config), *_padded(waves, config)]
            counts = [len(wave) // config.samples_per_code for wave in padded]
            own = sum(counts[: len(spoken)])
            shares = [(own, min(config.codebook_size // 2, _SPOKEN_CODES))] if len(spoken) else []
            shares.append((sum(counts) - own, config.codebook_size - sum(size for _, size in shares)))
            for there, size in shares:
                if there < 2 * size:
                    told, needed = (n * config.samples_per_code / config.sample_rate for n in (there, 2 * size))
                    raise UserError(
                        f"mel_vq: {told:.1f} s of audio are too few for {size} codes; give at least {needed:.0f} s"
                    )
            stacked = _stacked_log_mels(padded, config)
            mean = stacked.mean(dim=0)
            stacked -= mean
            basis = _principal_envelopes(stacked, config)
            generator = torch.Generator().manual_seed(seed)
            points = stacked @ basis
            voices = points.split([there for there, _ in shares])
            centroids = torch.cat([k_means(p, size, generator) for p, (_, size) in zip(voices, shares, strict=True)])
            weights = {"mean": mean, "basis": basis, "centroids": centroids}
            decoder = _decoder(config)
            if decoder is not None:
                decoder.to_empty(device="cpu")
                codes = nearest(points, centroids).split(counts)
                order = [*range(len(spoken))] * (_SPOKEN_TIMES - 1) + [*range(len(codes))]
                decoder.fit(
                    [codes[number] for number in order],
                    lambda number: _log_spectra(padded[order[number]], config),
                    centroids,
                    generator,
                )
                weights |= {_DECODER + key: weight for key, weight in decoder.state_dict().items()}
                kept = range(len(spoken) or len(padded))
                parts = [(_log_spectra(padded[at], config) - decoder.mean) @ decoder.basis for at in kept]
                units = Units.weights([codes[at] for at in kept], parts)
                weights |= {_UNITS + key: weight for key, weight in units.items()}
        if not all(bool(weight.isfinite().all()) for weight in weights.values()):
            raise UserError("mel_vq: nothing can be told apart in this audio, as in silence; give speech")
        return cls(config, weights)

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
            codes = nearest(points, self._weights["centroids"]).int()
        counts = [len(wave) // self.config.samples_per_code for wave in padded]
        return [part.numpy() for part in codes.split(counts)]

    def encode_stream(self) -> MelVQEncodeStream:
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
            magnitudes = self._spectra(codes)[0][None]
            phases = spectral.first_phases(*magnitudes.shape[1:])
            decoded = spectral.griffin_lim(magnitudes, self.config.hop, self.config.griffin_lim_iterations, phases)[0]
            return decoded[edge : edge + len(codes) * self.config.samples_per_code].clamp(-1, 1).numpy()

    def decode_stream(self) -> MelVQStream:
        """A fresh stream decoder."""
        return MelVQStream(self)

    def codebook(self) -> np.ndarray:
        """The centroids, `(codebook_size, pca_size) float32`: log-mel frames less their mean, turned to principal axes."""
        return self._weights["centroids"].numpy()

    def silence(self, n: int) -> np.ndarray:
        """`n` times the code of digital silence, `(n,) int32`."""
        return np.full(n, self._silent_code, dtype=np.int32)

    @cached_property
    def _silent_code(self) -> int:
        return int(self.encode([np.zeros(self.config.samples_per_code, np.float32)])[0][0])

    def push_streams(self, streams: Sequence[MelVQStream], codes: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """What `push` gives of each stream for its codes, one after another, and takes less time.

        If it raises, the streams whose sound has not come are as they were.
        """
        new = [stream.taken(row) for stream, row in zip(streams, codes, strict=True)]
        with _one_thread():
            # of all first, while the weights are in the cache
            made = [self._spectra(row, stream.context) for stream, row in zip(streams, new, strict=True)]
        for stream, (spectra, context) in zip(streams, made, strict=True):
            with _one_thread():
                wave = stream.sound(spectra, context)
            yield wave

    def _spectra(self, codes: Tensor, before: Context | None = None) -> tuple[Tensor, Context]:
        """Magnitudes `(frames, bins)` of the next codes `(n,)` of a stream.

        before: what this returned beside for the codes before these; nothing at the beginning.
        """
        config, before = self.config, before or Context()
        if self._decoder is None:
            return self._lone_spectra[codes].flatten(0, 1), before
        network = partial(self._decoder.components, codes, before.codes)
        if self._units is None:
            components, trail = network(), before.trail
        else:
            components, trail = self._units.chosen(codes, network, before.trail)
        least, scale = config.quietest * _NEAR_SILENCE, spectral.hann(config.hop).sum()
        amplitudes = torch.nn.functional.threshold(self._decoder.spectra(components).exp_(), least, 0.0, inplace=True)
        context = Context(torch.cat((before.codes, codes))[-REACH:], trail)
        return amplitudes.view(-1, config.bins).mul_(scale), context

    @cached_property
    def _lone_spectra(self) -> Tensor:
        """Of a codec without a network: magnitudes of every code, `(codebook_size, frames_per_code, bins)`."""
        config = self.config
        filters = spectral.mel_filters(config.sample_rate, spectral.OVERLAP * config.hop, config.n_mels)
        log_mel = self._weights["centroids"] @ self._weights["basis"].T + self._weights["mean"]
        mel = log_mel.view(-1, config.n_mels).exp()
        mel = torch.where(mel > config.quietest * _NEAR_SILENCE, mel, 0.0)
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
        save_safetensors(self._weights, folder / WEIGHTS_FILE)
        header = {"name": self.name, "config": self.config.fields, "fingerprint": self.fingerprint}
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
        config = read_config(header["config"], folder / CODEC_FILE)
        path = folder / WEIGHTS_FILE
        with open_safetensors(path, f"{folder} is not complete") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}
            found = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
            shapes = _shapes(config, _n_units({key: shape for key, (shape, _) in found.items()}))
            wanted = {key: (shape, _WHOLE_NUMBERS.get(key, "F32")) for key, shape in shapes.items()}
            if differs := [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]:
                there, meant = ({key: some.get(key) for key in differs[:4]} for some in (found, wanted))
                raise UserError(f"{path} holds {there}, but a codec of this configuration holds {meant}")
            # copied: the file may be written while its codec is used
            codec = cls(config, {key: file.get_tensor(key).clone() for key in wanted})
        kept = codec._weights.get(_UNITS + "codes", torch.zeros(0))
        if bool(((kept < BOUNDARY) | (kept >= config.codebook_size)).any()):
            raise UserError(f"{path} holds speech with codes that the codebook does not have; fetch it again")
        if not all(bool(weight.isfinite().all()) for weight in codec._weights.values()):
            raise UserError(f"{path} holds values that are not finite; fetch it again")
        if codec.fingerprint != header["fingerprint"]:
            raise UserError(f"{path} does not belong to {folder / CODEC_FILE}: its contents have another fingerprint")
        return codec


def _decoder(config: MelVQConfig) -> ContextDecoder | None:
    """The decoder without its weights: no random numbers are drawn, and no memory is taken, whatever a folder asks for."""
    if not config.decoder_width:
        return None
    spectrum = config.frames_per_code * config.bins
    with torch.device("meta"):
        return ContextDecoder(config.codebook_size, config.decoder_width, config.decoder_components, spectrum)


def _n_units(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Codes of the speech that is kept, by the shapes of a codec's weights; 0 if there is none."""
    return max((shape[0] for name in ("codes", "parts") if (shape := shapes.get(_UNITS + name))), default=0)


def _shapes(config: MelVQConfig, n_units: int = 0) -> dict[str, tuple[int, ...]]:
    stacked = config.frames_per_code * config.n_mels
    decoder = _decoder(config)
    network = {} if decoder is None else decoder.state_dict()
    units = {"codes": (n_units,), "parts": (n_units, config.decoder_components), "scale": (config.decoder_components,)}
    return {
        "mean": (stacked,),
        "basis": (stacked, config.pca_size),
        "centroids": (config.codebook_size, config.pca_size),
        **{_DECODER + key: tuple(weight.shape) for key, weight in network.items()},
        **{_UNITS + key: shape for key, shape in units.items() if n_units and decoder is not None},
    }


def _fingerprint(config: MelVQConfig, weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(config.fields, sort_keys=True).encode())
    for key in sorted(weights):
        digest.update(key.encode() + weights[key].numpy().tobytes())
    return digest.hexdigest()[:16]


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


def _principal_envelopes(stacked: Tensor, config: MelVQConfig) -> Tensor:
    """The directions in which the smooth shapes of a code's frames differ most: `(frames_per_code * n_mels, pca_size)`.

    A frame's lowest cosines are its envelope, which says what is spoken; the harmonics of the voice are in the others.
    """
    least = math.ceil(config.pca_size / config.frames_per_code)
    cosines = spectral.cosines(config.n_mels, min(config.n_mels, max(_ENVELOPE, least)))
    smooth = torch.block_diag(*[cosines] * config.frames_per_code)
    envelopes = stacked @ smooth
    _, vectors = torch.linalg.eigh(envelopes.T @ envelopes)
    basis: Tensor = smooth @ vectors[:, -config.pca_size :].flip(1)
    return basis


def _log_spectra(wave: Tensor, config: MelVQConfig) -> Tensor:
    """Log amplitudes of a padded wave, those of all frames of a code in a row: `(codes, frames_per_code * bins)`."""
    spectra = spectral.amplitudes(wave, config.hop).clamp_(min=config.quietest).log_()
    return spectra.view(-1, config.frames_per_code * config.bins)


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
