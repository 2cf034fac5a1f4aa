"""Codes to speech at 22.05 kHz: flow and vocoder together, whole answers and batches, the public checkpoint folder.

The published decoder starts every call from the same seed, and the vocoder draws from what the flow left of it. Here
each call has a generator of its own, always on the CPU, so that a wave depends on neither the device nor earlier calls.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.codecs.glm4voice.flow import CodesToMel, stretched
from vita_audio_pl.codecs.glm4voice.hift import Vocoder
from vita_audio_pl.codecs.glm4voice.settings import DecoderSettings
from vita_audio_pl.errors import UserError

_SEED = 42
_LARGEST_BATCH_CODES = 1500  # codes decoded in one pass


class SpeechDecoder:
    """The public decoder folder, ready to use.

    Attributes:
        flow: its dtype may be bfloat16 or float16; the equation itself is always solved in float32.
        vocoder: always float32.
    """

    def __init__(self, settings: DecoderSettings, flow: CodesToMel, vocoder: Vocoder):
        self.settings, self.flow, self.vocoder = settings, flow, vocoder
        self.sample_rate = settings.vocoder.sample_rate
        self.samples_per_frame = settings.vocoder.samples_per_frame

    @classmethod
    def load(cls, folder: str | Path) -> "SpeechDecoder":
        """Loads a folder in the public layout: `config.yaml` (its tags are not run), `flow.pt`, `hift.pt`.

        Raises:
            UserError: a file is missing, damaged, asks for code to be run, or does not fit; the sentence names it.
        """
        folder = Path(folder)
        settings = DecoderSettings.read(folder / "config.yaml")
        flow = CodesToMel.load(settings.flow, folder / "flow.pt")
        return cls(settings, flow, Vocoder.load(settings.vocoder, folder / "hift.pt"))

    @property
    def device(self) -> torch.device:
        return self.flow.encoder_proj.weight.device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SpeechDecoder":
        """Moves both networks in place; `dtype` is for the flow alone."""
        self.flow.to(device=device, dtype=dtype)
        self.vocoder.to(device=device)
        return self

    def checked(self, codes: np.ndarray) -> np.ndarray:
        """`codes` as `(n,) int64`.

        Raises:
            UserError: they are not one row of whole numbers in the codebook.
        """
        codes = np.asarray(codes)
        if codes.ndim != 1 or (codes.dtype.kind not in "iu" and len(codes)):
            raise UserError(f"codes must be one row of whole numbers, not {codes.dtype} of shape {codes.shape}")
        size = self.settings.flow.vocabulary
        if len(codes) and not (0 <= codes.min() and codes.max() < size):
            bad = int(codes.min() if codes.min() < 0 else codes.max())
            raise UserError(f"code {bad} is not in the codebook of {size} entries; was another codec's output decoded?")
        return codes.astype(np.int64)

    def decode_batch(self, codes: Sequence[np.ndarray], steps: int = 10) -> list[np.ndarray]:
        """Waves `(frames * 256,) float32` of code sequences, each as the published decoder makes it from the whole.

        Sequences of one length share a pass, for which nothing need be padded; each wave is what it is by itself.

        Raises:
            UserError: a code is not in the codebook.
        """
        checked = [self.checked(sequence) for sequence in codes]
        waves = [np.empty(0, np.float32)] * len(checked)
        by_length: dict[int, list[int]] = {}
        for number, sequence in enumerate(checked):
            by_length.setdefault(len(sequence), []).append(number)
        for length, numbers in by_length.items():
            at_once = max(1, _LARGEST_BATCH_CODES // max(1, length))
            for start in range(0, len(numbers) if length else 0, at_once):
                chosen = numbers[start : start + at_once]
                decoded = self._decode_equal(np.stack([checked[number] for number in chosen]), steps)
                for number, wave in zip(chosen, decoded, strict=True):
                    waves[number] = wave
        return waves

    @torch.inference_mode()
    def _decode_equal(self, codes: np.ndarray, steps: int) -> np.ndarray:
        generator = published_generator()
        mel = self.mel(torch.from_numpy(codes).to(self.device), generator, steps=steps)
        return self.wave(mel, generator)[0].cpu().numpy()

    def mel(
        self, codes: Tensor, generator: torch.Generator, *, prompt: Tensor | None = None, steps: int = 10
    ) -> Tensor:
        """Mel `(items, n_mels, frames)` of `codes: (items, n)` behind the frames of `prompt`, noise as published."""
        frames = self.settings.frames(codes.shape[1])
        noise = torch.randn(1, self.settings.flow.n_mels, frames, generator=generator).to(self.device)
        places = stretched(codes.shape[1], frames, self.device)
        out: Tensor = self.flow(codes, places, noise.expand(len(codes), -1, -1), prompt=prompt, steps=steps)
        return out

    def wave(
        self, mel: Tensor, generator: torch.Generator, cached_source: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Wave `(items, samples)` and source `(items, 1, samples)`, which begins with `cached_source` if given."""
        phases, noise = self.vocoder.m_source.draw(mel.shape[-1], generator)
        source = self.vocoder.m_source(self.vocoder.pitch(mel), phases.to(mel.device), noise.to(mel.device))
        if cached_source is not None:
            source[..., : cached_source.shape[-1]] = cached_source
        return self.vocoder(mel, source), source


def published_generator() -> torch.Generator:
    """The generator that every call of the published decoder starts from."""
    return torch.Generator().manual_seed(_SEED)
