"""What the small spoken world's own tokenizer, codec and front end are fitted to: texts and waves of its training split."""

from collections.abc import Iterator, Sequence

import numpy as np

from vita_audio_pl.codecs import read_audio
from vita_audio_pl.spoken_world.build import World
from vita_audio_pl.text import AUDIO_PLACEHOLDER, ROLES, Conversation


def training_texts(world: World, sources: Sequence[str]) -> Iterator[str]:
    """Texts to train the tokenizer on: role names, and the text of training messages."""
    for conversation in _conversations(world, sources):
        yield from ROLES
        for message in conversation.tts_rewrite().messages:
            yield from message.content.split(AUDIO_PLACEHOLDER)


def training_waves(
    world: World,
    sources: Sequence[str],
    sample_rate: int,
    seed: int,
    most_seconds: float,
    assistant: bool | None = None,
) -> list[np.ndarray]:
    """A seeded choice of training audio, `(samples,)` float32 each; assistant: of its voice alone, or without it."""
    paths = sorted({path for conversation in _conversations(world, sources) for path in conversation.audios})
    if assistant is not None:
        own = f"audio/{world.info['voices']['assistant']}/"
        paths = [path for path in paths if path.startswith(own) == assistant]
    waves: list[np.ndarray] = []
    seconds = 0.0
    for number in np.random.default_rng(seed).permutation(len(paths)).tolist():
        waves.append(read_audio(world.folder / paths[number], sample_rate))
        seconds += len(waves[-1]) / sample_rate
        if seconds >= most_seconds:
            break
    return waves


def _conversations(world: World, sources: Sequence[str]) -> Iterator[Conversation]:
    for name in sources:
        path = world.samples(name.removeprefix("world_"), "train")
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield Conversation.from_json(line, f"{path}:{number}")
