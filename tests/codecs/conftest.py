import json
from dataclasses import dataclass

import numpy as np
import pytest

from vita_audio_pl.codecs import MelVQ, read_audio
from vita_audio_pl.spoken_world import World


@dataclass
class Speech:
    """The smoke world with a codec that was fitted to its training audio."""

    world: World
    codec: MelVQ
    waves: list[np.ndarray]  # training audio
    held_out: dict[str, np.ndarray]  # test text to the assistant's speech


@pytest.fixture(scope="session")
def speech(smoke_world) -> Speech:
    world = World.load(smoke_world)

    def rows(task: str, split: str) -> list[dict]:
        return [json.loads(line) for line in world.samples(task, split).read_text().splitlines()]

    paths = {path for task in ("asr", "tts", "sqa") for row in rows(task, "train") for path in row["audios"]}
    waves = [read_audio(world.folder / path, 16_000) for path in sorted(paths)]
    held_out = {
        row["messages"][0]["content"].split("\n")[1]: read_audio(world.folder / row["audios"][0], 16_000)
        for row in rows("tts", "test")
    }
    return Speech(world, MelVQ.load(smoke_world / "codec"), waves, held_out)
