"""A conversation in tokens: each turn as segments of text, codes and frames, before interleaving."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.errors import UserError
from vita_audio_pl.text.conversation import Conversation
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.vocabulary import AUDIO_PLACEHOLDER

EXTRA_FRAMES = 4
"""A SenseVoice encoder puts four query frames (language, event, emotion, text form) in front of its frames."""


@dataclass(frozen=True, eq=False, slots=True)
class TextIds:
    """A piece of text. `ids: (n,)`, any integer type."""

    ids: NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class AudioCodes:
    """One audio as codes. `codes: (n,)`, any integer type, from 0."""

    codes: NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class AudioFrames:
    """One audio as features for a continuous encoder. `features: (frames, dim)` float32."""

    features: NDArray[np.float32]

    @property
    def n_placeholders(self) -> int:
        """Encoder states, each of which replaces one `<|context_of_audio|>`."""
        return int(self.features.shape[0]) + EXTRA_FRAMES


Segment: TypeAlias = TextIds | AudioCodes | AudioFrames


class TurnCounts(NamedTuple):
    """Numbers that decide a turn's rendered length: text tokens, codes of all audios, audios (as codes or frames), and
    placeholders of the audios given as frames."""

    n_text: int
    n_codes: int
    n_audios: int
    n_placeholders: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Turn:
    """What one side says: `role` and its segments in the order of the message."""

    role: str
    segments: tuple[Segment, ...]

    def counts(self) -> TurnCounts:
        """What an index needs to know of this turn."""
        n_text = n_codes = n_audios = n_placeholders = 0
        for segment in self.segments:
            if isinstance(segment, TextIds):
                n_text += segment.ids.size
                continue
            n_audios += 1
            if isinstance(segment, AudioCodes):
                n_codes += segment.codes.size
            else:
                n_placeholders += segment.n_placeholders
        return TurnCounts(n_text, n_codes, n_audios, n_placeholders)


def conversation_to_turns(
    conversation: Conversation, tokenizer: TextTokenizer, audios: Sequence[NDArray[np.integer[Any]] | AudioFrames]
) -> list[Turn]:
    """Tokenises a conversation, text-to-speech requests rewritten into interleaved answers.

    Text around an audio is tokenised piece by piece, as a special token between them would cut it.

    Args:
        conversation: the messages.
        tokenizer: the text tokenizer.
        audios: what each path of `conversation.audios` became: codes `(n,)`, or frames for a continuous encoder.

    Raises:
        UserError: another number of audios than of paths, frames in an answer, or codes that are not codes.
    """
    if len(audios) != len(conversation.audios):
        raise UserError(f"{conversation.id}: {len(audios)} audios were given for {len(conversation.audios)} paths")
    remaining = iter(audios)
    turns = []
    for message in conversation.tts_rewrite().messages:
        segments: list[Segment] = []
        for number, text in enumerate(message.content.split(AUDIO_PLACEHOLDER)):
            if number:
                segments.append(_audio(next(remaining), message.role, conversation.id))
            if text:
                segments.append(TextIds(np.asarray(tokenizer.encode(text), np.int32)))
        turns.append(Turn(message.role, tuple(segments)))
    return turns


def _audio(audio: NDArray[np.integer[Any]] | AudioFrames, role: str, where: str) -> Segment:
    if isinstance(audio, AudioFrames):
        if role == "assistant":
            raise UserError(f"{where}: an answer's audio must be codes; frames are for audio that is listened to")
        if audio.features.ndim != 2:
            raise UserError(f"{where}: features must be (frames, dim), not of shape {audio.features.shape}")
        return audio
    codes = np.asarray(audio)
    if codes.ndim != 1 or not (codes.size == 0 or np.issubdtype(codes.dtype, np.integer)):
        raise UserError(f"{where}: codes must be one row of whole numbers, not {codes.dtype} of shape {codes.shape}")
    if codes.size and codes.min() < 0:
        raise UserError(f"{where}: {codes.min()} is not a code; codes start at 0")
    return AudioCodes(codes)
