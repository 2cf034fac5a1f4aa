"""Quality of a spoken answer besides its words: similarity to a voice prompt (WavLM), naturalness (UTMOS)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.judges.pocketsphinx import RATE, at_rate
from vita_audio_pl.foreign.pretrained import PROCESSOR, from_pretrained, require_checkpoint
from vita_audio_pl.foreign.weights import require_trust


class SpeakerSimilarity:
    """Cosine similarity of two recordings' speaker embeddings, from a WavLM x-vector checkpoint on disk.

    Args:
        folder: a checkpoint of transformers' `WavLMForXVector` with its feature extractor.
        device: where it runs.

    Raises:
        UserError: the folder holds no such checkpoint, or a damaged one.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import Wav2Vec2FeatureExtractor, WavLMForXVector

        require_checkpoint(folder, "WavLM", "speaker_model", PROCESSOR)
        self.device = device
        self.features = from_pretrained(Wav2Vec2FeatureExtractor, folder, "WavLM")
        self.model = from_pretrained(WavLMForXVector, folder, "WavLM").to(device).eval()

    def compare(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray], sample_rate: int) -> list[float]:
        """Similarity in [-1, 1] of each pair of waves `(samples,) float32` at `sample_rate` Hz."""
        pairs = zip(first, second, strict=True)
        return [float(self._embed(a, sample_rate) @ self._embed(b, sample_rate)) for a, b in pairs]

    @torch.inference_mode()
    def _embed(self, wave: np.ndarray, sample_rate: int) -> torch.Tensor:
        # One at a time: padding changes WavLM's embeddings
        inputs = self.features(at_rate(wave, sample_rate), sampling_rate=RATE, return_tensors="pt")
        return torch.nn.functional.normalize(self.model(inputs.input_values.to(self.device)).embeddings[0], dim=0)


class Naturalness:
    """Predicted mean opinion score of a recording, 1 to 5, by a UTMOS model exported to TorchScript.

    Args:
        file: the exported model; called with `(1, samples)` at 16 kHz, it returns the score.
        device: where it runs.
        trust_file: load it, although a TorchScript file can run code, for example write files.

    Raises:
        UserError: the file is missing, not trusted, or no TorchScript.
    """

    def __init__(self, file: Path, device: str = "cpu", trust_file: bool = False) -> None:
        if not file.is_file():
            raise UserError(f"{file} does not exist; give the TorchScript file of UTMOS as mos_model=FILE")
        require_trust(file, "a TorchScript file", trust_file)
        try:
            self.model = torch.jit.load(file, map_location=device).eval()
        except RuntimeError as error:
            raise UserError(f"{file} is not a TorchScript model: {str(error).splitlines()[0]}") from None
        self.device = device

    @torch.inference_mode()
    def score(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[float]:
        """Score of each wave `(samples,) float32` at `sample_rate` Hz."""
        tensors = (torch.from_numpy(at_rate(wave, sample_rate)).to(self.device) for wave in waves)
        return [float(self.model(tensor[None]).reshape(-1)[0]) for tensor in tensors]
