"""How near the codes of a wave lie to it."""

import numpy as np
import torch

from tests.margins import assert_same_choices
from vita_audio_pl.codecs.glm4voice.features import HOP
from vita_audio_pl.codecs.glm4voice.tokenizer import PIECE, SpeechTokenizer


def nearness(hidden: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Negative distances `(positions, codes)` of states `(positions, width)`."""
    return -torch.cdist(hidden.double(), codebook.double())


@torch.no_grad()
def nearness_of(tokenizer: SpeechTokenizer, wave: np.ndarray) -> torch.Tensor:
    """Of a wave `(samples,)` encoded by itself, in pieces of 30 s: `(codes, codebook)`."""
    states = []
    for start in range(0, len(wave), PIECE):
        piece = wave[start : start + PIECE].astype(np.float32)
        padded = np.pad(piece, (0, -len(piece) % tokenizer.samples_per_code))
        frames = torch.tensor([-(-len(piece) // HOP)])
        states.append(tokenizer.encoder.hidden(tokenizer.features(torch.from_numpy(padded)[None]), frames)[0])
    return nearness(torch.cat(states), tokenizer.encoder.codebook.weight)


def assert_same_codes(tokenizer: SpeechTokenizer, wave: np.ndarray, found, expected) -> None:
    """Codes of a wave that are equal, or as near to it as each other."""
    assert_same_choices(found, expected, lambda: nearness_of(tokenizer, wave))
