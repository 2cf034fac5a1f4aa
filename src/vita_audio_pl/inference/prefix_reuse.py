"""Prefix reuse: how much of a new prompt a resting sequence's slot already holds, and what has to be read again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.inference.sequence import DecodedSequence, PromptAudio
from vita_audio_pl.text.turns import EXTRA_FRAMES


@torch.inference_mode()
def prompt_audio(
    runtime: Runtime, prompt: Sequence[int], clips: Sequence[Tensor], after: DecodedSequence | None
) -> PromptAudio:
    """Encoder states for the audio placeholders of a prompt; recordings that `after` has encoded are not encoded again.

    Raises:
        UserError: clips are not features, or do not match the prompt's placeholders.
    """
    places = [p for p, token in enumerate(prompt) if token == runtime.place_of_audio]
    runtime.check_clips(clips, len(places))
    known = 0 if after is None else _same(clips, after.clips)
    states = [] if after is None else list(after.states.values())[: sum(map(_places, clips[:known]))]
    if len(clips) > known:
        states += list(runtime.encode_audio(clips[known:]))
    return PromptAudio(tuple(clips), dict(zip(places, states, strict=True)))


def reuse_prefix(sequence: DecodedSequence, after: DecodedSequence, window: int) -> None:
    """Take over what `after` has read, in the same slot: the common prefix of tokens and recordings.

    Head k needs its predecessor's outputs from one position before the first that it has not read, of which the last
    `window` are kept. If they are gone (a deep cut, or an answer written without heads), the predecessor
    reads again from there.
    """
    common = _same(sequence.ids, after.ids)
    first_new = sum(map(_places, sequence.clips[: _same(sequence.clips, after.clips)]))
    if first_new < len(sequence.states):
        common = min(common, list(sequence.states)[first_new])
    sequence.read = [max(first, min(read, common)) for first, read in enumerate(after.read)]
    sequence.oldest = list(after.oldest)
    # the last token must be read, since what follows it is not known
    sequence.read[0] = min(sequence.read[0], len(sequence.ids) - 1)
    for reader in range(sequence.n_heads if sequence.chained else 0, 0, -1):
        needed = sequence.read[reader] - 1
        if needed < sequence.oldest[reader - 1]:
            sequence.read[reader - 1] = max(reader - 1, min(sequence.read[reader - 1], needed))


def _same(first: Sequence[object], second: Sequence[object]) -> int:
    """Length of the common prefix; tensors are equal only if they are the same object."""
    for count, (one, other) in enumerate(zip(first, second, strict=False)):
        if one is not other and (isinstance(one, Tensor) or one != other):
            return count
    return min(len(first), len(second))


def _places(clip: Tensor) -> int:
    return len(clip) + EXTRA_FRAMES
