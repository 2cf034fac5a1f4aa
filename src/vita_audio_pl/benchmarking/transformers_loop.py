"""The baseline of the decoding benchmark: transformers' own greedy loop."""

from typing import cast

import torch
from transformers import DynamicCache

from vita_audio_pl.benchmarking.decoding import Measurement, clock_of
from vita_audio_pl.benchmarking.decoding_settings import DecodingProtocol, DecodingSize, Setting
from vita_audio_pl.benchmarking.random_model import random_model
from vita_audio_pl.models.families import family_of


class TransformersLoop:
    """Vanilla with transformers' own model and its growing cache, one session: what the published system's loop does.

    Args:
        size, device, dtype: of the model, whose weights are random as the others' are.
    """

    def __init__(self, size: DecodingSize, protocol: DecodingProtocol, device: torch.device, dtype: torch.dtype):
        self.measured = Measurement(Setting("transformers"))
        self._tokens, self._prompt, self._vocabulary = protocol.new_tokens, protocol.prompt_tokens, size.vocabulary
        self._config = random_model(size, self._prompt + self._tokens, device, dtype).config.backbone
        self._config._attn_implementation = "sdpa"
        with device:
            self._model = family_of(self._config).causal_lm(self._config).eval()
        cast(torch.nn.Module, self._model).to(dtype)  # transformers' wrapper of `to` has a signature without `self`
        self._device = device

    @torch.inference_mode()
    def run(self, counts: bool = True) -> None:
        """Writes one answer; counts: and keeps what it took."""
        clock = clock_of(self._device)
        ids = torch.randint(self._vocabulary, (1, self._prompt), device=self._device)
        cache = DynamicCache(config=self._config)
        begun, first = clock(), 0.0
        for number in range(self._tokens):
            logits = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
            int(ids)
            if number == 10:
                first = clock() - begun
        seconds = clock() - begun
        if counts:
            measured = self.measured
            measured.seconds.append(seconds)
            measured.tokens.append(self._tokens)
            measured.audio_seconds.append(0.0)
            measured.first_chunk.append(first or seconds)
            measured.written += self._tokens
            measured.backbone_passes += self._tokens
