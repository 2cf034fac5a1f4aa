"""Streamed decoding exactly as the public GLM-4-Voice decoder does it, flaws included, for comparison.

Each chunk reads all codes and all mel before it, so chunks cost ever more; its noise starts over; mels are joined by two
halves of a Hamming window, whose sum is not 1; the mel that is handed on repeats one frame, so from the third chunk on
the overlap lies one frame beside its match and 12 ms of sound are lost per chunk; and each wave begins without what came
before it. `crossfade_stream` has none of this.
"""

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.codecs.glm4voice.chunked_stream import ChunkedStream
from vita_audio_pl.codecs.glm4voice.decoder import SpeechDecoder, published_generator
from vita_audio_pl.codecs.glm4voice.stream_options import StreamOptions
from vita_audio_pl.errors import UserError


class PublishedStream(ChunkedStream):
    """Chunks as the public decoder joins them."""

    def __init__(self, decoder: SpeechDecoder, options: StreamOptions):
        super().__init__(decoder, options)
        codes, _ = next(options.chunks())
        first = decoder.settings.frames(codes)
        if first <= options.overlap_frames:
            raise UserError(
                f"streamed decoding: a first chunk of {codes} codes has {first} mel frames, too few to "
                f"hold {options.overlap_frames} back; use larger chunk_codes"
            )
        self._prompt_codes = np.empty(0, np.int64)
        n_mels = decoder.settings.flow.n_mels
        self._prompt_mel = torch.empty(1, n_mels, 0, device=decoder.device)
        self._overlap: Tensor | None = None
        self._last_frame = self._prompt_mel
        self._last_source: Tensor | None = None
        # the published window is symmetric, falls to 0.08 at its ends and is not complementary
        window = np.hamming(2 * options.overlap_frames)
        self._rise, self._fall = (
            torch.from_numpy(half).to(decoder.device, torch.float32) for half in np.split(window, 2)
        )

    def _held_back(self) -> np.ndarray:
        if self._overlap is None:
            return np.empty(0, np.float32)
        wave: np.ndarray = self._vocoded(self._overlap, published_generator(), last=True)
        return wave

    @torch.inference_mode()
    def _decoded(self, chunk: np.ndarray, last: bool) -> np.ndarray:
        generator, options = published_generator(), self._options
        codes = torch.from_numpy(np.concatenate((self._prompt_codes, chunk)))[None].to(self._decoder.device)
        mel = self._decoder.mel(codes, generator, prompt=self._prompt_mel, steps=self._steps)
        if self._overlap is not None:
            faded = mel[..., : options.overlap_frames] * self._rise + self._overlap * self._fall
            mel = torch.cat((faded, mel[..., options.overlap_frames :]), dim=-1)
        self._prompt_codes = np.concatenate((self._prompt_codes, chunk))
        if not last:
            kept = mel.shape[-1] - options.overlap_frames
            mel, self._overlap = mel[..., :kept], mel[..., kept:]
        wave: np.ndarray = self._vocoded(mel, generator, last=last)
        return wave

    @torch.inference_mode()
    def _vocoded(self, mel: Tensor, generator: torch.Generator, last: bool) -> np.ndarray:
        decoder, frame = self._decoder, self._decoder.samples_per_frame
        mel = torch.cat((self._last_frame, mel), dim=-1)
        waves, source = decoder.wave(mel, generator, self._last_source)
        wave: np.ndarray = waves[0].cpu().numpy()
        if last:
            return wave
        self._prompt_mel = torch.cat((self._prompt_mel, mel), dim=-1)
        self._last_frame, self._last_source = mel[..., -1:], source[..., -frame:]
        return wave[:-frame]
