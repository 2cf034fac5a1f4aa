"""Streamed decoding without seams, of our own: noise fixed to the place, sources that go on, cross-fades that add to 1.

Every mel frame and every sample has its noise, whichever chunk makes it. A chunk reads a bounded window of codes and
finished mel before it, so the cost per chunk does not grow. Its last `overlap_frames` are provisional: the next chunk
makes them again, knowing what follows, and fades from the old to the new. The vocoder reads finished mel on the left
and provisional mel on the right of what it hands out, its source keeps phase across chunks, and the wave that was made
of provisional mel fades into its successor. The joined wave has the length of the whole mel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.codecs.glm4voice.chunked_stream import ChunkedStream
from vita_audio_pl.codecs.glm4voice.decoder import SpeechDecoder
from vita_audio_pl.codecs.glm4voice.stream_options import StreamOptions

_VOCODER_REACH = 20  # mel frames to each side that a sample of the wave depends on
_SEED = 42


class CrossfadeStream(ChunkedStream):
    """Chunks that fade into one another."""

    def __init__(self, decoder: SpeechDecoder, options: StreamOptions):
        super().__init__(decoder, options)
        settings = decoder.settings
        self._codes_per_frame = settings.code_rate * decoder.samples_per_frame / decoder.sample_rate
        self._codes = _Window(torch.empty(0, dtype=torch.int64, device=decoder.device))
        n_mels, harmonics = settings.flow.n_mels, settings.vocoder.harmonics
        self._mel_noise = _FrameNoise((n_mels,), _SEED, decoder.device)
        self._source_noise = _FrameNoise((harmonics, decoder.samples_per_frame), _SEED + 1, decoder.device)
        empty = torch.empty(0, device=decoder.device)
        self._mel = _Window(empty.reshape(n_mels, 0))  # finished
        self._source = _Window(empty)  # of the finished mel
        self._provisional = self._mel.values
        self._tail = empty  # the wave of the provisional mel
        self._phases, _ = decoder.vocoder.m_source.draw(0, torch.Generator().manual_seed(_SEED))
        self._phases = self._phases.to(decoder.device)
        self._cycles = torch.zeros_like(self._phases)

    def _held_back(self) -> np.ndarray:
        return self._tail.cpu().numpy()

    @torch.inference_mode()
    def _decoded(self, chunk: np.ndarray, last: bool) -> np.ndarray:
        self._codes.append(torch.from_numpy(chunk).to(self._decoder.device))
        mel = self._new_mel()
        overlap = self._provisional.shape[-1]
        rise = _rise(overlap, mel)
        mel[:, :overlap] = mel[:, :overlap] * rise + self._provisional * (1 - rise)
        final = mel.shape[-1] if last else max(0, mel.shape[-1] - self._options.overlap_frames)
        wave = self._new_wave(mel, final)
        fade = min(self._options.fade_samples, len(self._tail))
        rise = _rise(fade, wave)
        wave[:fade] = wave[:fade] * rise + self._tail[:fade] * (1 - rise)
        samples = final * self._decoder.samples_per_frame
        self._provisional, self._tail = mel[:, final:], wave[samples:]
        self._forget()
        return wave[:samples].cpu().numpy()

    def _new_mel(self) -> Tensor:
        """Mel behind the finished frames, `(n_mels, frames)`."""
        settings = self._decoder.settings
        codes, finished = self._codes, self._mel.end
        first, end = settings.frames(codes.start), settings.frames(codes.end)
        frames = torch.arange(first, end, device=codes.values.device, dtype=torch.float64)
        # a frame keeps its code however the window moves
        places = (frames * self._codes_per_frame).floor().long().clamp(codes.start, codes.end - 1) - codes.start
        mel: Tensor = self._decoder.flow(
            codes.values[None],
            places,
            self._mel_noise.at(first, end).T[None],
            prompt=self._mel.since(first)[None] if finished > first else None,
            steps=self._steps,
        )
        return mel[0]

    def _new_wave(self, mel: Tensor, final: int) -> Tensor:
        """Wave of `mel: (n_mels, frames)`, whose first `final` frames are finished with this."""
        vocoder, frame = self._decoder.vocoder, self._decoder.samples_per_frame
        begin = self._mel.end
        start = max(self._mel.start, begin - _VOCODER_REACH)
        context = begin - start
        mel_in_reach = torch.cat((self._mel.since(start), mel), dim=-1)[None]
        pitch = vocoder.pitch(mel_in_reach)[:, context:]
        noise = self._source_noise.at(begin, begin + mel.shape[-1]).permute(1, 0, 2).flatten(1)[None]
        source = vocoder.m_source(pitch, self._phases, noise, self._cycles)[0, 0]
        waves: Tensor = vocoder(mel_in_reach, torch.cat((self._source.since(start * frame), source))[None, None])
        self._cycles = vocoder.m_source.cycles_after(pitch[:, :final], self._cycles)
        self._mel.append(mel[:, :final])
        self._source.append(source[: final * frame])
        return waves[0, context * frame :]

    def _forget(self) -> None:
        """Drops what later chunks do not read; the window of codes starts where a block of the encoder starts."""
        settings, mel_end = self._decoder.settings, self._mel.end
        block = settings.flow.encoder.block
        unfinished = int(mel_end * self._codes_per_frame)  # the first code whose frames are still provisional
        self._codes.drop_before(min(self._codes.end - self._options.context_codes, unfinished) // block * block)
        frame = min(settings.frames(self._codes.start), mel_end - _VOCODER_REACH)
        self._mel.drop_before(frame)
        self._mel_noise.drop_before(frame)
        self._source.drop_before((mel_end - _VOCODER_REACH) * self._decoder.samples_per_frame)
        self._source_noise.drop_before(mel_end)


def _rise(length: int, like: Tensor) -> Tensor:
    """Half a raised cosine from 0 to 1; with its mirror image it adds to 1."""
    places = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / max(1, length)
    return 0.5 - 0.5 * torch.cos(torch.pi * places)


@dataclass
class _Window:
    """The newest stretch of a growing row; places along the last dimension count from the row's start."""

    values: Tensor
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + self.values.shape[-1]

    def append(self, values: Tensor) -> None:
        self.values = torch.cat((self.values, values), dim=-1)

    def since(self, place: int) -> Tensor:
        return self.values[..., max(0, place - self.start) :]

    def drop_before(self, place: int) -> None:
        if place > self.start:
            self.values = self.values[..., place - self.start :]
            self.start = place


class _FrameNoise:
    """Standard normal noise that belongs to frames: the same numbers however the frames are asked for."""

    def __init__(self, shape: tuple[int, ...], seed: int, device: torch.device):
        self._shape, self._device = shape, device
        self._random = np.random.default_rng(seed)
        self._values, self._start = np.empty((0, *shape), np.float32), 0

    def at(self, start: int, end: int) -> Tensor:
        """Noise of the frames `[start, end)`, `(frames, *shape)`."""
        missing = end - self._start - len(self._values)
        if missing > 0:
            fresh = self._random.standard_normal((missing, *self._shape), np.float32)
            self._values = np.concatenate((self._values, fresh))
        return torch.from_numpy(self._values[start - self._start : end - self._start]).to(self._device)

    def drop_before(self, frame: int) -> None:
        if frame > self._start:
            self._values = self._values[frame - self._start :]
            self._start = frame
