"""The counts of a sample that determine its row length and labels, for any interval ratio."""

from collections.abc import Sequence
from dataclasses import dataclass

from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import MARKERS_PER_CHUNK
from vita_audio_pl.text import ROLES, LengthRule, Turn

ASSISTANT = ROLES.index("assistant")


@dataclass(frozen=True)
class SampleShape:
    """Counts of one sample.

    Attributes:
        prompt_text: prompt tokens that do not depend on the ratio: template, text, both markers of each audio.
        prompt_codes: codes in the prompt.
        prompt_frames: placeholders that replace them with continuous input.
        answers: (text tokens, codes) of each answer. Answers without audio count as one answer.
        one_answer: whether the sample has a single answer, as its last turn.
    """

    prompt_text: int
    prompt_codes: int
    prompt_frames: int
    answers: tuple[tuple[int, int], ...]
    one_answer: bool


def shape_of(turns: Sequence[Turn], rule: LengthRule, prompt_frames: int = 0) -> SampleShape:
    """Counts of a conversation.

    Args:
        turns: the conversation, its audio as codes.
        rule: a length rule with the template; its ratio does not matter.
        prompt_frames: placeholders of the prompt audio, for continuous input.

    Raises:
        UserError: the conversation has no answer to learn from.
    """
    spoken: list[tuple[int, int]] = []
    written: list[int] = []
    prompt_text = prompt_codes = 0
    for turn in turns:
        n_text, n_codes, n_audios, _ = turn.counts()
        if turn.role != "assistant":
            prompt_text += rule.around[ROLES.index(turn.role)] + n_text + MARKERS_PER_CHUNK * n_audios
            prompt_codes += n_codes
        elif n_codes:
            spoken.append((n_text, n_codes))
        else:
            written.append(n_text)
    if not spoken and not written:
        raise UserError("the conversation has no answer: add a message of the assistant")
    answers = tuple(spoken)
    if written:  # answers without audio have the same length under every ratio, so they are summed
        closings = rule.closing * (len(written) - 1)
        prompt_text += rule.around[ASSISTANT] * (len(written) - 1) - closings
        answers += ((sum(written) + closings, 0),)
    one_answer = len(spoken) + len(written) == 1 and turns[-1].role == "assistant"
    return SampleShape(prompt_text, prompt_codes, prompt_frames, answers, one_answer)
