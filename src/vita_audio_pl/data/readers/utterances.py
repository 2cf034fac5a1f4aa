"""Utterances as conversations: what a corpus of recordings and transcripts becomes for recognition and for synthesis."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vita_audio_pl.data.readers.base import AudioRef, RawSample, Unreadable
from vita_audio_pl.errors import UserError
from vita_audio_pl.text import ASR_INSTRUCTION, AUDIO_PLACEHOLDER, TTS_INSTRUCTION, Conversation, Message

VOICE_PROMPT = f"Your Voice: {AUDIO_PLACEHOLDER}\n"


@dataclass(frozen=True)
class Utterance:
    """A recording and what is said in it; `speaker` is "" where it is not known."""

    id: str
    audio: AudioRef
    text: str
    speaker: str = ""


@dataclass(frozen=True)
class UtteranceRules:
    """How utterances become conversations.

    Attributes:
        task: `asr` (write down what is said) or `tts` (say what is written).
        speaker_prompt: for `tts`, another utterance of the speaker is given as the voice to speak in.
        lower: transcripts are lower-cased (for corpora that shout).
        join: blanks in transcripts are removed (for Chinese cut into words).
    """

    task: str
    speaker_prompt: bool = False
    lower: bool = False
    join: bool = False

    def __post_init__(self) -> None:
        if self.task not in ("asr", "tts"):
            raise UserError(f"recordings with transcripts serve the tasks asr and tts, not '{self.task}'")
        if self.speaker_prompt and self.task != "tts":
            raise UserError("speaker_prompt is for the task tts")

    def samples(self, utterances: Iterable[Utterance | Unreadable]) -> Iterator[RawSample | Unreadable]:
        """Conversations of a part's utterances, in order; with speaker prompts, near it."""
        if not self.speaker_prompt:
            yield from (u if isinstance(u, Unreadable) else self._sample(u, None) for u in utterances)
            return
        alone: dict[str, Utterance] = {}  # speakers heard once so far
        last: dict[str, Utterance] = {}
        for utterance in utterances:
            if isinstance(utterance, Unreadable):
                yield utterance
                continue
            if not utterance.speaker:
                yield Unreadable(utterance.id, f"{utterance.id}: its speaker is not known", "no speaker")
                continue
            first, before = alone.pop(utterance.speaker, None), last.get(utterance.speaker)
            if before is None:
                alone[utterance.speaker] = utterance
            else:
                if first is not None:
                    yield self._sample(first, utterance.audio)
                yield self._sample(utterance, before.audio)
            last[utterance.speaker] = utterance
        for utterance in alone.values():
            problem = f"{utterance.id}: the only utterance of its speaker here, so none is left to show the voice"
            yield Unreadable(utterance.id, problem, "only utterance of its speaker")

    def _sample(self, utterance: Utterance, voice: AudioRef | None) -> RawSample | Unreadable:
        text = utterance.text.replace(AUDIO_PLACEHOLDER, "")
        text = "".join(text.split()) if self.join else " ".join(text.split())
        text = text.lower() if self.lower else text
        if not text:
            return Unreadable(utterance.id, f"{utterance.id}: it has no transcript", "no transcript")
        if self.task == "asr":
            messages = [Message("user", f"{ASR_INSTRUCTION}\n{AUDIO_PLACEHOLDER}"), Message("assistant", text)]
        else:
            messages = [Message("user", f"{TTS_INSTRUCTION}\n{text}"), Message("assistant", AUDIO_PLACEHOLDER)]
        audios: tuple[AudioRef, ...] = (utterance.audio,)
        if voice is not None:
            messages.insert(0, Message("system", VOICE_PROMPT))
            audios = (voice, *audios)
        return RawSample(Conversation(utterance.id, tuple(messages), tuple(map(str, audios))), audios)
