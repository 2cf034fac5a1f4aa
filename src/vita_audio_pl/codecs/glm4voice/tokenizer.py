"""Waves to GLM-4-Voice codes: pieces of 30 s, batches of like lengths, the public checkpoint folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.codecs.glm4voice.features import HOP, SAMPLE_RATE, log_mel, normalise
from vita_audio_pl.codecs.glm4voice.settings import TokenizerSettings
from vita_audio_pl.codecs.glm4voice.whisper_vq import WhisperVQEncoder
from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import Fields, read_json
from vita_audio_pl.foreign.weights import load_strict, read_weights

PIECE = 30 * SAMPLE_RATE  # samples; longer audio is cut there, without overlap, as published
_MOST_PIECES = 128
_SHORTEST_SHARE = 0.8  # of the longest piece of a batch; shorter ones would be mostly padding


@dataclass(frozen=True)
class Piece:
    """At most 30 s of one wave: its number, and where the piece starts and ends in samples."""

    wave: int
    start: int
    stop: int

    @property
    def samples(self) -> int:
        return self.stop - self.start


def plan_batches(lengths: Sequence[int], batch_seconds: float) -> Iterator[list[Piece]]:
    """Groups all pieces of waves of `lengths` samples into batches of like lengths, longest first.

    A batch holds at most 128 pieces, at most `batch_seconds` with its padding (but one piece at least), and no piece
    shorter than 0.8 of its longest.
    """
    pieces = [
        Piece(wave, start, min(start + PIECE, length))
        for wave, length in enumerate(lengths)
        for start in range(0, length, PIECE)
    ]
    pieces.sort(key=lambda piece: -piece.samples)
    batch: list[Piece] = []
    for piece in pieces:
        longest = batch[0].samples if batch else piece.samples
        full = len(batch) == _MOST_PIECES or (len(batch) + 1) * longest > batch_seconds * SAMPLE_RATE
        if batch and (full or piece.samples < _SHORTEST_SHARE * longest):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def check_wave(wave: np.ndarray, name: str) -> np.ndarray:
    """`wave` as float32, checked to be one channel of finite samples; samples beyond full scale are left as they are.

    Raises:
        UserError: it has several channels, is no float audio, or holds NaN or infinite samples.
    """
    wave = np.asarray(wave)
    if wave.ndim != 1:
        raise UserError(f"{name} has shape {wave.shape}; expected one channel, (samples,): pick or mix a channel")
    if wave.dtype.kind != "f":
        raise UserError(f"{name} holds {wave.dtype} samples; expected floats in [-1, 1]: divide by the full scale")
    if not np.isfinite(wave).all():
        raise UserError(f"{name} holds samples that are NaN or infinite")
    return wave.astype(np.float32, copy=False)


class SpeechTokenizer:
    """Speech at 16 kHz to codes, 12.5 a second with the public settings.

    Attributes:
        batch_seconds: seconds of audio, padding included, encoded at once; more suits a GPU.
    """

    def __init__(self, encoder: WhisperVQEncoder, batch_seconds: float = 240.0):
        self.encoder = encoder.eval().requires_grad_(False)
        self.batch_seconds = batch_seconds

    @classmethod
    def load(cls, folder: str | Path) -> "SpeechTokenizer":
        """Loads a folder in the public layout: `config.json`, `preprocessor_config.json`, `model.safetensors`.

        Raises:
            UserError: a file is missing, damaged, or does not fit the others; the sentence names it.
        """
        folder = Path(folder)
        settings = TokenizerSettings.read(folder / "config.json")
        _check_feature_settings(folder / "preprocessor_config.json", settings)
        path = folder / "model.safetensors"
        with torch.device("meta"):
            encoder = WhisperVQEncoder(settings)
        load_strict(encoder, _public_names(read_weights(path), settings), path)
        return cls(encoder)

    @property
    def samples_per_code(self) -> int:
        return HOP * self.encoder.frames_per_code

    @property
    def device(self) -> torch.device:
        return self.encoder.conv1.weight.device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SpeechTokenizer":
        """Moves the network in place; the features and the search of the codebook stay in float32."""
        self.encoder.to(device=device, dtype=dtype)
        return self

    def fingerprint(self) -> str:
        """Hash of the settings and weights that codes depend on."""
        digest = blake2b(repr(self.encoder.settings).encode(), digest_size=16)
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of each wave, `(ceil(samples / 1280),) int32`.

        Waves longer than 30 s are cut, the pieces encoded by themselves and their codes joined. What a wave's codes are
        does not depend on the waves beside it.

        Args:
            waves: `(samples,) float` each, 16 kHz.

        Raises:
            UserError: a wave is empty, has several channels or holds samples that are not finite.
        """
        checked = [check_wave(wave, f"wave {number}") for number, wave in enumerate(waves)]
        if empty := [number for number, wave in enumerate(checked) if not len(wave)]:
            raise UserError(f"wave {empty[0]} is empty (0 samples); there is nothing to encode")
        codes = [np.empty(-(-len(wave) // self.samples_per_code), np.int32) for wave in checked]
        for batch in plan_batches([len(wave) for wave in checked], self.batch_seconds):
            found = self.encode_pieces([checked[piece.wave][piece.start : piece.stop] for piece in batch])
            for piece, ids in zip(batch, found, strict=True):
                start = piece.start // self.samples_per_code
                codes[piece.wave][start : start + len(ids)] = ids
        return codes

    @torch.inference_mode()
    def encode_pieces(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of pieces of at most 30 s each, padded together into one batch."""
        longest = max(len(piece) for piece in pieces)
        padded = np.zeros((len(pieces), -(-longest // self.samples_per_code) * self.samples_per_code), np.float32)
        for row, piece in zip(padded, pieces, strict=True):
            row[: len(piece)] = piece
        frames = torch.tensor([-(-len(piece) // HOP) for piece in pieces], device=self.device)
        ids = self.encoder(self.features(torch.from_numpy(padded)), frames).to(torch.int32).cpu().numpy()
        return [row[: -(-len(piece) // self.samples_per_code)] for row, piece in zip(ids, pieces, strict=True)]

    def features(self, waves: Tensor) -> Tensor:
        """Input features `(items, n_mels, samples / 160) float32` of `waves: (items, samples)`."""
        return normalise(log_mel(waves.to(self.device), self.encoder.settings.n_mels))


def _public_names(state: dict[str, Tensor], settings: TokenizerSettings) -> dict[str, Tensor]:
    """The encoder's part, in public names, of a file that may hold the whole model that was trained."""
    prefix = "model.encoder."
    if not any(name.startswith(prefix) for name in state):
        return state
    unused = tuple(f"layers.{number}." for number in _layers_above(state, settings.quantize_position))
    encoder = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in encoder.items() if not name.startswith((*unused, "layer_norm."))}


def _layers_above(state: dict[str, Tensor], first: int) -> list[int]:
    parts = (name.split(".layers.")[1].split(".")[0] for name in state if name.startswith("model.encoder.layers."))
    return [int(part) for part in set(parts) if part.isdigit() and int(part) >= first]


def _check_feature_settings(path: Path, settings: TokenizerSettings) -> None:
    fields = Fields(read_json(path), str(path))
    fields.only("sampling_rate", SAMPLE_RATE)
    fields.only("hop_length", HOP)
    fields.only("n_fft", 400)
    fields.only("chunk_length", 30)
    fields.only("feature_size", settings.n_mels)
