"""Neural recognisers as judges: Whisper and Paraformer, from checkpoints on disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.judges.pocketsphinx import RATE, at_rate
from vita_audio_pl.foreign.pretrained import PROCESSOR, TOKENIZER, from_pretrained, loading, require_checkpoint

_LONGEST = 30 * RATE  # samples per Whisper window


class WhisperJudge:
    """Whisper, by transformers; recordings above 30 s are split into windows of 30 s.

    Args:
        folder: a checkpoint in transformers' format, processor files included.
        device: device; half precision on a GPU.
        batch_size: windows per batch.
        language: language of the recordings, such as `en`; None detects it. Monolingual checkpoints take none.

    Raises:
        UserError: the folder holds no Whisper checkpoint, or a damaged one.
    """

    def __init__(self, folder: Path, device: str = "cpu", batch_size: int = 16, language: str | None = None) -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        require_checkpoint(folder, "Whisper", "judge_model", PROCESSOR, TOKENIZER)
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        self.device, self.dtype, self.batch_size = device, dtype, batch_size
        self.processor = from_pretrained(WhisperProcessor, folder, "Whisper")
        model = from_pretrained(WhisperForConditionalGeneration, folder, "Whisper", dtype=dtype)
        self.model = model.to(device).eval()
        told = language is not None and getattr(model.generation_config, "is_multilingual", True)
        self.forced = {"language": language, "task": "transcribe"} if told else {}

    @torch.inference_mode()
    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """Text of each wave `(samples,) float32` at `sample_rate` Hz."""
        pieces = [(n, piece) for n, wave in enumerate(waves) for piece in _windows(at_rate(wave, sample_rate))]
        texts: list[list[str]] = [[] for _ in waves]
        for start in range(0, len(pieces), self.batch_size):
            batch = pieces[start : start + self.batch_size]
            features = self.processor(
                [piece for _, piece in batch], sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
            )
            ids = self.model.generate(
                features.input_features.to(self.device, self.dtype),
                attention_mask=features.attention_mask.to(self.device),
                do_sample=False,
                num_beams=1,
                **self.forced,
            )
            for (n, _), text in zip(batch, self.processor.batch_decode(ids, skip_special_tokens=True), strict=True):
                texts[n].append(text.strip())
        return [" ".join(parts) for parts in texts]


class ParaformerJudge:
    """Paraformer-zh, by FunASR (an extra: `pip install funasr`).

    Args:
        folder: a checkpoint folder of FunASR (`model.pt`, `config.yaml`, ...).
        device: where it runs.

    Raises:
        UserError: FunASR is not installed, or the folder is not there.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        try:
            from funasr import AutoModel
        except ImportError:
            raise UserError("the judge 'paraformer' needs the package funasr: `pip install funasr`") from None
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the Paraformer checkpoint as judge_model=FOLDER")
        with loading(folder, "Paraformer"):
            self.model = AutoModel(model=str(folder), device=device, disable_update=True, disable_pbar=True)

    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """Text of each wave `(samples,) float32` at `sample_rate` Hz."""
        return [self.model.generate(input=at_rate(wave, sample_rate), fs=RATE)[0]["text"] for wave in waves]


def _windows(wave: np.ndarray) -> list[np.ndarray]:
    return [wave[start : start + _LONGEST] for start in range(0, max(1, len(wave)), _LONGEST)]
