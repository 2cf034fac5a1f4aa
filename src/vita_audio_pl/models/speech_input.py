"""Continuous speech for the language model (the Plus variants): SenseVoice encoder, then an adapter to its width.

In published checkpoints the weights are named `model.audio_model.model.*` and `model.audio_projection.*`: the names of
`SpeechInput`'s parameters with the prefix `model.`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vita_audio_pl.foreign.weights import load_strict
from vita_audio_pl.models.layout import to_device
from vita_audio_pl.models.sensevoice import N_QUERIES, SenseVoiceConfig, SenseVoiceEncoder

RELEASED_PREFIX = "model."
ENCODER = r"^speech_input\.audio_model\."
"""Names of the encoder's parameters in a `SpeechLM`; the published training freezes them in every stage."""


class SpeechAdapter(nn.Sequential):
    """States `(..., width)` to embeddings `(..., hidden)`: norm, linear, GELU, linear, without biases."""

    def __init__(self, width: int, hidden: int):
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, hidden, bias=False),
            nn.GELU(),
            nn.Linear(hidden, hidden, bias=False),
        )


class SpeechInput(nn.Module):
    """Embeddings that replace those of the `<|context_of_audio|>` tokens: frames + 4 for each clip."""

    def __init__(self, encoder: SenseVoiceEncoder, hidden: int):
        super().__init__()
        self.audio_model = nn.ModuleDict({"model": encoder})
        self.audio_projection = SpeechAdapter(encoder.config.width, hidden)

    @property
    def encoder(self) -> SenseVoiceEncoder:
        return cast(SenseVoiceEncoder, self.audio_model["model"])

    @classmethod
    def from_released(
        cls, state: dict[str, Tensor], config: SenseVoiceConfig, hidden: int, source: str | Path
    ) -> "SpeechInput":
        """Build the module from the tensors of a published checkpoint; other tensors are ignored.

        The recognition layer is kept if the checkpoint has it, so that the file can be written back unchanged.

        Raises:
            UserError: a tensor is missing, does not belong, or has another shape.
        """
        parts = ("audio_model.", "audio_projection.")
        own = {name.removeprefix(RELEASED_PREFIX): tensor for name, tensor in state.items()}
        own = {name: tensor for name, tensor in own.items() if name.startswith(parts)}
        ctc = own.get("audio_model.model.ctc.ctc_lo.weight")
        config = SenseVoiceConfig(**{**vars(config), "ctc_tokens": len(ctc) if ctc is not None and ctc.dim() else 0})
        with torch.device("meta"):
            module = cls(SenseVoiceEncoder(config), hidden)
        load_strict(module, own, source)
        return module

    def released_state(self) -> dict[str, Tensor]:
        """Tensors under their published names."""
        return {RELEASED_PREFIX + name: tensor for name, tensor in self.state_dict().items()}

    def forward(self, clips: Sequence[Tensor]) -> Tensor:
        """Embeddings of all clips, concatenated: `(sum of frames + 4 per clip, hidden)`.

        Args:
            clips: features `(frames, input_size)` of each, at least one.
        """
        lengths = to_device(np.array([len(clip) for clip in clips]), clips[0].device)
        states, _ = self.encoder(pad_sequence(list(clips), batch_first=True), lengths)
        # a mask would make the host wait for the device
        valid = [each[: len(clip) + N_QUERIES] for each, clip in zip(states, clips, strict=True)]
        out: Tensor = self.audio_projection(torch.cat(valid))
        return out
