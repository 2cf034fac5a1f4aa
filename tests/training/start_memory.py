"""`python start_memory.py FOLDER [override ...]`: trains a toy stage; each rank leaves `FOLDER/start.rank-<r>.json`.

It holds the most memory of its own that the rank had until its model was built, until its first step, until the hand-over
(with what it saved meanwhile) and in it, in bytes beyond those before, and the model's bytes.
"""

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import toy

from vita_audio_pl.training.callbacks.lifecycle import HandOver
from vita_audio_pl.training.callbacks.preemption import Preemption
from vita_audio_pl.training.stage import train
from vita_audio_pl.training.stage.trainer import micro_batches

SEED = 1  # no document begins with a padding token, whose embedding is 0: gradients grow a thousandfold in each norm after it


def own() -> int:
    """Bytes that this process has for itself; what it maps of files is not counted."""
    return int(re.findall(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) << 10


def watch(most: list[int], taken: Callable[[], int] = own) -> None:
    while True:
        most[0] = max(most[0], taken())
        time.sleep(0.002)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    config = toy.toy_config(folder / "runs", *sys.argv[2:])
    rows, accumulate = micro_batches(config)
    before, most, found = own(), [0], {}
    threading.Thread(target=watch, args=(most,), daemon=True).start()
    build, start, conclude = train.stage_module, Preemption.on_train_start, HandOver._conclude

    def built(*what):
        module, frozen = build(*what)
        found["model"] = sum(parameter.nbytes for parameter in module.speech_lm.parameters())
        found["built"] = max(most[0], own()) - before
        return module, frozen

    def started(self, trainer, module):
        found["started"] = max(most[0], own()) - before
        start(self, trainer, module)
        most[0] = own()

    def concluded(self, trainer, module):
        found["trained"], most[0] = max(most[0], own()) - before, own()
        conclude(self, trainer, module)
        found["handed_over"] = max(most[0], own()) - before
        (folder / f"start.rank-{trainer.global_rank}.json").write_text(json.dumps(found))

    train.stage_module, Preemption.on_train_start, HandOver._conclude = built, started, concluded
    train.train_stage(config, toy.toy_data(folder / "world", toy.ToyData(SEED, rows, accumulate)))
