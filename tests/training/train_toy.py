"""`python train_toy.py FOLDER [poison=STEP ...] [override ...]`: trains a toy stage under FOLDER.

Tests start it as a process of its own.
"""

import sys
from pathlib import Path

import probe
import toy
from poison import poison

from vita_audio_pl.training.stage.train import train_stage
from vita_audio_pl.training.stage.trainer import micro_batches

if __name__ == "__main__":
    probe.install()
    folder = Path(sys.argv[1])
    spoilt = [argument for argument in sys.argv[2:] if argument.startswith("poison=")]
    poison({int(argument.removeprefix("poison=")) for argument in spoilt})
    config = toy.toy_config(folder / "runs", *(argument for argument in sys.argv[2:] if argument not in spoilt))
    rows, accumulate = micro_batches(config)
    hears, text_weight = config.variant.has_audio_encoder, config.rendering.text_weight
    data = toy.ToyData(rows=rows, accumulate=accumulate, hears=hears, text_weight=text_weight)
    wants_samples = config.callbacks.samples.every_steps != 0
    train_stage(config, toy.toy_data(folder / "world", data, prompts=wants_samples))
