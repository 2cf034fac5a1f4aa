"""The GLM-4-Voice codec behind the common protocol: 16384 codes, 12.5 a second, from the public checkpoint folders."""

import reprlib
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import soxr
import torch

from vita_audio_pl.codecs.glm4voice.crossfade_stream import CrossfadeStream
from vita_audio_pl.codecs.glm4voice.decoder import SpeechDecoder
from vita_audio_pl.codecs.glm4voice.encode_stream import EncodeStream
from vita_audio_pl.codecs.glm4voice.features import HOP, SAMPLE_RATE
from vita_audio_pl.codecs.glm4voice.published_stream import PublishedStream
from vita_audio_pl.codecs.glm4voice.settings import DecoderSettings, TokenizerSettings
from vita_audio_pl.codecs.glm4voice.stream_options import MOST_STEPS, StreamOptions
from vita_audio_pl.codecs.glm4voice.tokenizer import SpeechTokenizer, check_wave
from vita_audio_pl.codecs.protocol import CODEC_FILE, DecodeStream, read_codec_file, write_codec_file
from vita_audio_pl.errors import UserError

_LONGEST_WHOLE = 750  # codes (60 s) decoded in one piece as published; longer answers are streamed in large chunks
_LONG_FORM = StreamOptions(chunk_codes=(250,))


class GLM4VoiceCodec:
    """Speech to codes and back, at one sample rate for both.

    The tokenizer hears 16 kHz and the vocoder speaks 22.05 kHz. At the default of 16 kHz the codes are exactly the
    published ones and waves are resampled; at 22.05 kHz (`at_rate`) it is the other way round. The weights are read
    when they are first needed, so that a run that only reads prepared codes holds none.

    Attributes:
        tokenizer_folder, decoder_folder: the public checkpoint folders; without the latter nothing can be decoded.
        fingerprint: hash of what the codes depend on (the tokenizer's settings and weights).
        stream_options: how `decode_stream` works.
        flow_steps: Euler steps of the flow when decoding whole answers.
    """

    name = "glm4voice"

    def __init__(
        self,
        tokenizer_folder: str | Path,
        decoder_folder: str | Path | None = None,
        *,
        sample_rate: int = SAMPLE_RATE,
        fingerprint: str | None = None,
        stream_options: StreamOptions | None = None,
        flow_steps: int = 10,
    ):
        self.tokenizer_folder = Path(tokenizer_folder)
        self.decoder_folder = None if decoder_folder is None else Path(decoder_folder)
        self.sample_rate = _checked_rate(sample_rate)
        self.stream_options = stream_options or StreamOptions()
        self.flow_steps = flow_steps
        settings = TokenizerSettings.read(self.tokenizer_folder / "config.json")
        self.codebook_size = settings.codebook_size
        self.codes_per_second = SAMPLE_RATE / (HOP * 2 * settings.pooling_kernel)
        if self.decoder_folder is not None:
            self._check_pair(DecoderSettings.read(self.decoder_folder / "config.yaml"))
        self._device: torch.device | str = "cpu"
        self._dtype = torch.float32
        self._expected_fingerprint = fingerprint

    def _check_pair(self, decoder: DecoderSettings) -> None:
        if decoder.flow.vocabulary != self.codebook_size or decoder.code_rate != self.codes_per_second:
            raise UserError(
                f"{self.decoder_folder} decodes {decoder.flow.vocabulary} codes at {decoder.code_rate} a second, but "
                f"{self.tokenizer_folder} makes {self.codebook_size} at {self.codes_per_second}; they do not match"
            )

    @classmethod
    def load(cls, folder: str | Path) -> "GLM4VoiceCodec":
        """Opens a folder with the `codec.json` that `save` wrote.

        Raises:
            UserError: the file or a checkpoint folder is missing or wrong.
        """
        folder = Path(folder)
        header = read_codec_file(folder)
        where = folder / CODEC_FILE
        tokenizer, decoder = header.get("tokenizer"), header.get("decoder")
        rate, fingerprint = header.get("sample_rate"), header.get("fingerprint")
        if not isinstance(tokenizer, str) or not isinstance(decoder, str | None) or "\0" in tokenizer + (decoder or ""):
            raise UserError(f"{where}: 'tokenizer' and 'decoder' must be the paths of the GLM-4-Voice folders")
        if type(rate) is not int or not isinstance(fingerprint, str):
            raise UserError(f"{where}: 'sample_rate' must be a whole number and 'fingerprint' a text")
        steps = header.get("flow_steps", 10)
        if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
            raise UserError(
                f"{where}: 'flow_steps' is {reprlib.repr(steps)}; expected a whole number from 1 to {MOST_STEPS}"
            )
        return cls(
            folder / tokenizer,
            None if decoder is None else folder / decoder,
            sample_rate=rate,
            fingerprint=fingerprint,
            stream_options=StreamOptions.read(header.get("stream", {}), str(where)),
            flow_steps=steps,
        )

    def save(self, folder: str | Path) -> None:
        """Writes `codec.json`, which points to the checkpoint folders; the weights stay where they are."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        header = {
            "name": self.name,
            "tokenizer": str(self.tokenizer_folder.resolve()),
            "decoder": None if self.decoder_folder is None else str(self.decoder_folder.resolve()),
            "sample_rate": self.sample_rate,
            "fingerprint": self.fingerprint,
            "flow_steps": self.flow_steps,
            "stream": asdict(self.stream_options),
        }
        write_codec_file(folder, header)

    def at_rate(self, sample_rate: int) -> "GLM4VoiceCodec":
        """The same codec with waves at another rate; weights that are loaded are shared."""
        other = copy(self)
        other.sample_rate = _checked_rate(sample_rate)
        return other

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "GLM4VoiceCodec":
        """Moves tokenizer and flow; the search of the codebook and the vocoder stay in float32."""
        self._device, self._dtype = device, dtype
        for part in ("tokenizer", "decoder"):
            if part in self.__dict__:
                getattr(self, part).to(device, dtype)
        return self

    @cached_property
    def tokenizer(self) -> SpeechTokenizer:
        tokenizer = SpeechTokenizer.load(self.tokenizer_folder)
        fingerprint = tokenizer.fingerprint()
        if self._expected_fingerprint not in (None, fingerprint):
            raise UserError(
                f"{self.tokenizer_folder} is not the tokenizer that this codec was saved with (its weights or settings "
                "differ); point codec.json to the right folder"
            )
        self._expected_fingerprint = fingerprint
        return tokenizer.to(self._device, self._dtype)

    @cached_property
    def decoder(self) -> SpeechDecoder:
        if self.decoder_folder is None:
            raise UserError("this GLM-4-Voice codec has no decoder; give the folder of glm-4-voice-decoder")
        return SpeechDecoder.load(self.decoder_folder).to(self._device, self._dtype)

    @property
    def fingerprint(self) -> str:
        if self._expected_fingerprint is None:
            self._expected_fingerprint = self.tokenizer.fingerprint()
        return self._expected_fingerprint

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes `(n,) int32` of each wave `(samples,) float` at `sample_rate`, about 12.5 a second.

        Raises:
            UserError: a wave is empty, has several channels, or holds NaN or infinite samples.
        """
        if self.sample_rate != SAMPLE_RATE:
            checked = [check_wave(wave, f"wave {number}") for number, wave in enumerate(waves)]
            waves = [soxr.resample(wave, self.sample_rate, SAMPLE_RATE) for wave in checked]
        return self.tokenizer.encode(waves)

    def encode_stream(self, exact: bool = False) -> EncodeStream:
        """A stream that takes 16 kHz audio as it comes and hands out codes as they become final."""
        return EncodeStream(self.tokenizer, exact)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Wave `(samples,) float32` at `sample_rate`; a UserError names a code that is not in the codebook."""
        return self.decode_batch([codes])[0]

    def decode_batch(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Waves of several code sequences, each as by itself; those of equal length are decoded together.

        Sequences of more than 60 s are decoded in chunks that are cross-faded, in bounded memory.
        """
        short = [np.empty(0, np.int64) if len(row) > _LONGEST_WHOLE else row for row in codes]
        waves = self.decoder.decode_batch(short, self.flow_steps)
        for number, row in enumerate(codes):
            if len(row) > _LONGEST_WHOLE:
                stream = CrossfadeStream(self.decoder, replace(_LONG_FORM, flow_steps=(self.flow_steps,)))
                waves[number] = np.concatenate((stream.push(row), stream.finish()))
        if self.sample_rate == self.decoder.sample_rate:
            return waves
        return [soxr.resample(wave, self.decoder.sample_rate, self.sample_rate) for wave in waves]

    def decode_stream(self, options: StreamOptions | None = None) -> DecodeStream:
        """A fresh stream of waves at `sample_rate`; `options` in place of `stream_options` for this one."""
        options = options or self.stream_options
        make = CrossfadeStream if options.join == "crossfade" else PublishedStream
        stream = make(self.decoder, options)
        if self.sample_rate == self.decoder.sample_rate:
            return stream
        return _Resampled(stream, self.decoder.sample_rate, self.sample_rate)

    def codebook(self) -> np.ndarray:
        """The vectors of the tokenizer's quantiser, `(codebook_size, width) float32`."""
        return self.tokenizer.encoder.codebook.weight.float().cpu().numpy()

    def silence(self, n: int) -> np.ndarray:
        """The codes of `n` codes' time of digital silence, `(n,) int32`."""
        if n == 0:
            return np.empty(0, np.int32)
        return self.tokenizer.encode([np.zeros(n * self.tokenizer.samples_per_code, np.float32)])[0]


def _checked_rate(sample_rate: int) -> int:
    if not 8000 <= sample_rate <= 192_000:
        raise UserError(f"the GLM-4-Voice codec cannot work at {sample_rate} Hz; choose 8000 to 192000, best 16000")
    return sample_rate


class _Resampled:
    """A decode stream at another rate."""

    def __init__(self, stream: DecodeStream, rate: int, wanted: int):
        self._stream = stream
        self._resampler = soxr.ResampleStream(rate, wanted, 1, dtype="float32")

    def push(self, codes: np.ndarray) -> np.ndarray:
        samples: np.ndarray = self._resampler.resample_chunk(self._stream.push(codes))
        return samples

    def finish(self) -> np.ndarray:
        samples: np.ndarray = self._resampler.resample_chunk(self._stream.finish(), last=True)
        return samples
