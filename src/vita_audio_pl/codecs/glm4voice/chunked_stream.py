"""What both ways of streamed decoding share: codes wait until a chunk is full, then it is decoded."""

from abc import ABC, abstractmethod

import numpy as np

from vita_audio_pl.codecs.glm4voice.decoder import SpeechDecoder
from vita_audio_pl.codecs.glm4voice.stream_options import StreamOptions


class ChunkedStream(ABC):
    """Wave chunks at 22.05 kHz of codes that arrive bit by bit; a `DecodeStream`."""

    def __init__(self, decoder: SpeechDecoder, options: StreamOptions):
        self._decoder, self._options = decoder, options
        self._chunks = options.chunks()
        self._size, self._steps = next(self._chunks)
        self._waiting = np.empty(0, np.int64)
        self._finished = False

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Takes `codes: (n,) integer` and returns the samples that the chunks they complete made final.

        Raises:
            UserError: a code is not in the codebook.
        """
        self._check_open()
        self._waiting = np.concatenate((self._waiting, self._decoder.checked(codes)))
        waves = [np.empty(0, np.float32)]
        while len(self._waiting) >= self._size:
            chunk, self._waiting = np.split(self._waiting, [self._size])
            waves.append(self._decoded(chunk, last=False))
            self._size, self._steps = next(self._chunks)
        return np.concatenate(waves)

    def finish(self) -> np.ndarray:
        """Returns the rest of the wave; the stream takes nothing after it."""
        self._check_open()
        self._finished = True
        return self._decoded(self._waiting, last=True) if len(self._waiting) else self._held_back()

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this stream is finished; start another with decode_stream()")

    @abstractmethod
    def _decoded(self, chunk: np.ndarray, last: bool) -> np.ndarray:
        """Samples that are final with `chunk: (n,) int64`, all of them if it is the last."""

    @abstractmethod
    def _held_back(self) -> np.ndarray:
        """Samples that wait for a next chunk, which does not come."""
