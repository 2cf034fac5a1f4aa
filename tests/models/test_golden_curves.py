"""60 steps of each stage on a made-up language, against curves that are kept.

A change that moves a curve changes training. Rounding moves none: with PyTorch's kernels without vector instructions
(`ATEN_CPU_CAPABILITY=default`), curves are a hundred times closer to those of AVX2 than the tolerance. To keep new ones on purpose:
`python tests/models/test_golden_curves.py` writes `golden_curves.json` again.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config

from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.initialise import add_heads
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.objectives import build_objective
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch

CURVES = Path(__file__).with_name("golden_curves.json")
STEPS, EVERY, VOCABULARY = 60, 10, 61
STAGES = {  # heads, whether the backbone is frozen, learning rate
    "align": (0, False, 5e-3),
    "mtp1": (1, True, 1e-3),
    "mtp10": (10, True, 1e-3),
    "sft": (10, False, 3e-4),
}


def batch_of(step, stage):
    """Documents in which a token follows from the one before, one time in eight by chance."""
    random = np.random.Generator(np.random.PCG64([step, list(STAGES).index(stage)]))
    lengths = [17, 25, 22]
    ids = np.empty(sum(lengths), np.int64)
    starts = np.cumsum([0, *lengths])
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        ids[start] = random.integers(VOCABULARY)
        for p in range(start + 1, end):
            ids[p] = (5 * ids[p - 1] + 3) % VOCABULARY if random.integers(8) else random.integers(VOCABULARY)
    positions = np.concatenate([np.arange(n) for n in lengths])
    labels = np.where(positions < 4, IGNORE_INDEX, ids)
    writers = np.concatenate([np.append([-1] * 4, DecodePattern.of("boost").writers(n - 4, 10)) for n in lengths])
    documents = np.repeat(np.arange(len(lengths)), lengths)
    tensors = [torch.from_numpy(array)[None] for array in (ids, labels, positions)]
    small = [torch.from_numpy(array.astype(kind))[None] for array, kind in ((documents, "int32"), (writers, "int8"))]
    divisor = float((labels >= 0).sum())
    sources = torch.zeros(1, len(ids), dtype=torch.int16)
    return PackedBatch(*tensors, *small, None, divisor, sources, [["golden/0"] * len(lengths)], {})


def first_model():
    torch.manual_seed(0)
    backbone = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.05,
    )
    return SpeechLM(SpeechLMConfig(backbone, n_heads=0))


def train(model, stage, objective="every_head"):
    """Per predictor, mean losses of every 10 steps."""
    n_heads, frozen, rate = STAGES[stage]
    add_heads(model, n_heads, torch.Generator().manual_seed(0))
    model.requires_grad_(True)
    if frozen:
        model.requires_grad_(False)
        model.heads.requires_grad_(True)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate, (0.9, 0.95), weight_decay=0)
    chosen, curve, window = build_objective(objective), [], []
    for step in range(STEPS):
        losses = model(batch_of(step, stage), chosen)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        window.append((losses.sums / losses.counts.clamp(min=1)).tolist())
        if len(window) == EVERY:
            curve.append([round(value, 5) for value in np.mean(window, axis=0).tolist()])
            window = []
    return curve


def all_curves(folder):
    model, curves = first_model(), {}
    for stage in STAGES:
        curves[stage] = train(model, stage)
        save_released(model, folder / stage)  # stages hand over by files, as in a real chain
        model = load_model(folder / stage)
    served = load_model(folder / "mtp1")
    curves["mtp10, served_slots"] = train(served, "mtp10", "served_slots")
    return curves


def test_every_stage_reproduces_its_curve(tmp_path):
    kept, curves = json.loads(CURVES.read_text()), all_curves(tmp_path)
    assert curves.keys() == kept.keys()
    for stage, curve in curves.items():
        for ours, expected in zip(curve, kept[stage], strict=True):
            assert ours == pytest.approx(expected, abs=1e-3), stage


def test_the_kept_curves_are_of_models_that_learn():
    kept = json.loads(CURVES.read_text())
    assert kept["align"][-1][0] < 0.5 * kept["align"][0][0]
    first, last = kept["mtp10"][0], kept["mtp10"][-1]
    assert first[0] == last[0] == 0 and all(end < start for start, end in zip(first[1:], last[1:], strict=True))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        CURVES.write_text(json.dumps(all_curves(Path(scratch)), indent=0) + "\n")
