"""Floating-point operations of a measured step, counted as in plans and in training."""

import numpy as np
import torch

from vita_audio_pl.models.flops import StepFlops
from vita_audio_pl.models.layout import PackedLayout
from vita_audio_pl.models.objectives import Objective
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.packed import PackedBatch


def step_flops(model: SpeechLM, batch: PackedBatch, objective: Objective) -> float:
    """Operations of forward and backward of `batch`, see `models.flops`."""
    layout = PackedLayout(batch)
    rows: list[slice | np.ndarray] = [slice(None), *(layout.head(k).tokens for k in range(model.n_heads))]
    scored = [int(objective.trains_on(layout, j)[tokens].sum()) for j, tokens in enumerate(rows)]
    return StepFlops(model, objective).of_batch(batch, torch.tensor(scored))
