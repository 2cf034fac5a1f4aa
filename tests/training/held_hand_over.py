"""`python held_hand_over.py FOLDER [override ...]`: trains a toy stage as the command does, and waits inside its hand-over.

Once the model's weights are written under a name aside, `FOLDER/writing` says where; it goes on when `FOLDER/go` is there.
"""

import sys
import time
from pathlib import Path

import toy

from vita_audio_pl.processes import announce_stop, requeue_on_signal
from vita_audio_pl.training.stage import hand_over
from vita_audio_pl.training.stage.train import train_stage
from vita_audio_pl.training.stage.trainer import micro_batches

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write = hand_over.write_checksums

    def held(aside: Path, *what: object) -> None:
        (folder / "writing.tmp").write_text(str(aside))
        (folder / "writing.tmp").rename(folder / "writing")  # whoever waits for it reads it at once
        while not (folder / "go").exists():
            time.sleep(0.01)
        write(aside, *what)

    hand_over.write_checksums = held
    with announce_stop(), requeue_on_signal(False):
        config = toy.toy_config(folder / "runs", *sys.argv[2:])
        rows, accumulate = micro_batches(config)
        train_stage(config, toy.toy_data(folder / "world", toy.ToyData(rows=rows, accumulate=accumulate)))
