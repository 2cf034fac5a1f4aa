"""Encoding while the speaker is still talking: codes are handed out as soon as they are final.

What a code depends on: all audio before it in its 30-s piece, the rest of its own block of the encoder (4 s with the
public settings), and the loudest bin of the whole piece, which sets the floor under the quiet ones. The first two are
known when the block is full. The third is not: a later, louder sound lifts the floor. So a full block is handed out,
and codes that a louder sound has changed since are counted; `exact=True` waits for the end of each piece instead.
"""

import numpy as np
import torch

from vita_audio_pl.codecs.glm4voice.features import HOP, N_FFT, log_mel, normalise
from vita_audio_pl.codecs.glm4voice.tokenizer import PIECE, SpeechTokenizer, check_wave
from vita_audio_pl.errors import UserError

_EMPTY = np.empty(0, np.int32)


class EncodeStream:
    """Codes of a wave that arrives bit by bit.

    Unless a block was handed out before the loudest sound of its piece, the codes of all calls, joined, are those of
    `SpeechTokenizer.encode` on the whole wave; with `exact=True` they always are.

    Attributes:
        changed: codes handed out that the audio heard since would give otherwise.
    """

    def __init__(self, tokenizer: SpeechTokenizer, exact: bool = False):
        settings = tokenizer.encoder.settings
        if settings.block % settings.pooling_kernel:
            raise UserError(
                f"this tokenizer cannot encode a stream: its blocks of {settings.block} positions do not divide by its "
                f"pooling of {settings.pooling_kernel}"
            )
        self._tokenizer, self._exact = tokenizer, exact
        self._codes_per_block = settings.block // settings.pooling_kernel
        self._piece = np.empty(0, np.float32)
        self._handed_out = _EMPTY  # of this piece
        self._changed_before, self._changed_here = 0, 0  # in earlier pieces, in this one
        self._finished = False

    @property
    def changed(self) -> int:
        return self._changed_before + self._changed_here

    def push(self, wave: np.ndarray) -> np.ndarray:
        """Takes `wave: (samples,) float` at 16 kHz and returns the codes that became final, `(n,) int32`."""
        self._check_open()
        self._piece = np.concatenate((self._piece, check_wave(wave, "the streamed audio")))
        codes = []
        while len(self._piece) >= PIECE:
            codes.append(self._rest_of(self._piece[:PIECE]))
            self._piece = self._piece[PIECE:]
        codes.append(self._new_blocks())
        return np.concatenate(codes)

    def provisional(self) -> np.ndarray:
        """Codes of the audio behind the final ones as it stands; they may change, and are not counted as given."""
        self._check_open()
        return self._encoded(self._piece)[len(self._handed_out) :]

    def finish(self) -> np.ndarray:
        """Returns the codes still held back; the stream takes nothing after it."""
        self._check_open()
        self._finished = True
        return self._rest_of(self._piece)

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this stream is finished; start another")

    def _encoded(self, piece: np.ndarray) -> np.ndarray:
        return self._tokenizer.encode_pieces([piece])[0] if len(piece) else _EMPTY

    def _rest_of(self, piece: np.ndarray) -> np.ndarray:
        """Ends a piece: its codes are all known now."""
        rest = self._new(self._encoded(piece))
        self._changed_before, self._changed_here = self.changed, 0
        self._handed_out = _EMPTY
        return rest

    def _new(self, codes: np.ndarray) -> np.ndarray:
        """Codes of this piece that were not handed out before; the others are compared."""
        given = len(self._handed_out)
        self._changed_here = int((codes[:given] != self._handed_out).sum())
        self._handed_out = np.concatenate((self._handed_out, codes[given:]))
        return codes[given:]

    @torch.inference_mode()
    def _new_blocks(self) -> np.ndarray:
        full = self._full_blocks()
        if self._exact or full == len(self._handed_out) // self._codes_per_block:
            return _EMPTY
        encoder, device = self._tokenizer.encoder, self._tokenizer.device
        logs = log_mel(torch.from_numpy(self._piece)[None].to(device), encoder.settings.n_mels)
        settled = (len(self._piece) - N_FFT // 2) // HOP + 1  # frames whose window lies inside the audio
        frames = full * self._codes_per_block * encoder.frames_per_code
        features = normalise(logs[..., :settled])[..., :frames]
        return self._new(encoder(features, torch.tensor([frames], device=device))[0].to(torch.int32).cpu().numpy())

    def _full_blocks(self) -> int:
        """Blocks of the piece that no later sample can reach, but for the piece's loudest bin."""
        block = self._codes_per_block * self._tokenizer.samples_per_code
        # a block's last position reads frames up to the last but one, and that frame's window reaches half its length on
        last_read = block - 2 * HOP + N_FFT // 2
        return (len(self._piece) + block - last_read) // block
