"""Utterances as conversations: what a corpus of recordings and transcripts becomes for recognition and for synthesis."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import soundfile

from vita_audio_pl.data.readers.base import (
    NO_TEXT,
    NO_TRANSCRIPT,
    AudioBytes,
    AudioRef,
    LeftOut,
    RawSample,
    Recorded,
    Unreadable,
    attempt,
)
from vita_audio_pl.data.readers.filters import NONE, Filters
from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.storage.remote_file import explain_faults
from vita_audio_pl.text import ASR_INSTRUCTION, AUDIO_PLACEHOLDER, TTS_INSTRUCTION, Conversation, Message
from vita_audio_pl.text.messages import is_blank, plain_text_of

VOICE_PROMPT = f"Your Voice: {AUDIO_PLACEHOLDER}\n"

_BLANKS = re.compile(r"[ \t\r\n]+")


@dataclass(frozen=True)
class Utterance:
    """A recording and what stands where its transcript should.

    Attributes:
        speaker: "" where it is not known.
        facts: what else the corpus says of it, for filters.
    """

    id: str
    audio: Recorded
    text: Any
    speaker: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def speaker_of(value: Any) -> str:
    """A speaker's name or number; "" where there is none, so that the nameless are never taken for one speaker."""
    told = str(value) if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)) else ""
    return "" if told.strip().lower() in _NOBODY else told


_NOBODY = {"n/a", "none", "nan", "null", "unknown", "-"}  # written by publishers where they do not know who speaks


@dataclass(frozen=True, kw_only=True)
class UtteranceOptions:
    """What every reader of recordings with transcripts takes beside its own options; all of them derive from this.

    Attributes:
        task: `asr` (write down what is said) or `tts` (say what is written).
        speaker_prompt: for `tts`, another utterance of the speaker is given as the voice to speak in.
        lower: transcripts are lower-cased (for all-caps transcripts).
        join: blanks in transcripts are removed (for Chinese cut into words).
        channel: which channel of the recordings to take, or `each`, which makes one sample of each; None takes the one
            that the corpus gives for the utterance, and mixes all where it gives none.
        filters: which utterances are taken, and what is changed in their transcripts.
    """

    task: str = "asr"
    speaker_prompt: bool = False
    lower: bool = False
    join: bool = False
    channel: int | str | None = None
    filters: Filters = field(default=NONE, repr=False)  # its identity is kept apart, where it filters anything

    @property
    def _rules(self) -> "UtteranceRules":
        return UtteranceRules(**{option.name: getattr(self, option.name) for option in fields(UtteranceOptions)})


@dataclass(frozen=True)
class UtteranceRules(UtteranceOptions):
    """How utterances become conversations."""

    def __post_init__(self) -> None:
        if self.task not in ("asr", "tts"):
            raise UserError(f"recordings with transcripts serve the tasks asr and tts, not '{self.task}'")
        if self.speaker_prompt and self.task != "tts":
            raise UserError("speaker_prompt is for the task tts")

    def samples(self, utterances: Iterable[Utterance | Unreadable]) -> Iterator[RawSample | Unreadable]:
        """Conversations of a part's utterances, in order; with speaker prompts, near it."""
        utterances = self._with_channels(self._wanted(utterances))
        if not self.speaker_prompt:
            for u in utterances:
                yield u if isinstance(u, Unreadable) else self._conversation(u, None)
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
                    yield self._conversation(first, utterance.audio)
                yield self._conversation(utterance, before.audio)
            last[utterance.speaker] = utterance
        for utterance in alone.values():
            problem = f"{utterance.id}: the only utterance of its speaker here, so none is left to show the voice"
            yield Unreadable(utterance.id, problem, "only utterance of its speaker")

    @property
    def identity(self) -> str:
        """Changes when utterances become other conversations."""
        return f"{self!r}{self.filters.identity}"

    def _wanted(self, utterances: Iterable[Utterance | Unreadable]) -> Iterator[Utterance | Unreadable]:
        """The utterances, those that are not wanted reported by name; so none of them shows a speaker's voice."""
        for utterance in utterances:
            yield utterance if isinstance(utterance, Unreadable) else attempt(utterance.id, self._written, utterance)

    def _written(self, utterance: Utterance) -> Utterance:
        """The utterance with its transcript as it is learnt."""
        speaker = self.filters.speaker_named(utterance.speaker)
        if self.filters.columns:
            self.filters.look(
                {"speaker": speaker, **utterance.facts} | ({"speaker": speaker} if self.filters.speaker else {})
            )
        if utterance.text is None or utterance.text == "":
            raise LeftOut(NO_TRANSCRIPT, "it has no transcript")
        try:
            text = plain_text_of(utterance.text, "its transcript")
        except UserError as error:
            raise LeftOut(NO_TEXT, str(error)) from None
        if is_blank(text):
            raise LeftOut(NO_TRANSCRIPT, "its transcript is blank")
        text = self.filters.text(text)
        # other blanks, such as no-break spaces and form feeds, are characters of the text
        text = "".join(text.split()) if self.join else _BLANKS.sub(" ", text).strip(" ")
        return replace(utterance, text=text.lower() if self.lower else text, speaker=speaker)

    def _with_channels(self, utterances: Iterable[Utterance | Unreadable]) -> Iterator[Utterance | Unreadable]:
        """The utterances, each with the channel that the rules or the corpus give it."""
        for utterance in utterances:
            if isinstance(utterance, Unreadable) or self.channel is None:
                yield utterance
            elif isinstance(self.channel, int):
                yield replace(utterance, audio=replace(utterance.audio, channel=self.channel))
            else:
                channels = 1 if utterance.audio.channel is not None else _channels(utterance.audio)
                if channels == 1:
                    yield utterance
                    continue
                for channel in range(channels):
                    audio = replace(utterance.audio, channel=channel)
                    yield replace(utterance, id=f"{utterance.id}/channel{channel}", audio=audio)

    def _conversation(self, utterance: Utterance, voice: AudioRef | None) -> RawSample | Unreadable:
        return attempt(utterance.id, self._made, utterance, voice)

    def _made(self, utterance: Utterance, voice: AudioRef | None) -> RawSample:
        text = utterance.text
        if self.task == "asr":
            messages = [Message("user", f"{ASR_INSTRUCTION}\n{AUDIO_PLACEHOLDER}"), Message("assistant", text)]
        else:
            messages = [Message("user", f"{TTS_INSTRUCTION}\n{text}"), Message("assistant", AUDIO_PLACEHOLDER)]
        audios: tuple[AudioRef, ...] = (utterance.audio,)
        if voice is not None:
            messages.insert(0, Message("system", VOICE_PROMPT))
            audios = (voice, *audios)
        return RawSample(
            Conversation(utterance.id, tuple(messages), tuple(map(str, audios))), audios, text, utterance.speaker
        )


def _channels(audio: Recorded) -> int:
    """Channels of a recording; 1 where it cannot be opened, which decoding it will show.

    Raises:
        OSError: the machine failed, not the file.
    """
    try:
        if isinstance(audio, AudioBytes):
            return int(soundfile.info(io.BytesIO(audio.data)).channels)
        if not audio.path.is_file():
            return 1
        # not by libsndfile, which would call a lack of file handles a bad file
        with audio.path.open("rb") as file, explain_faults(file):
            return int(soundfile.info(file).channels)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        if is_machine_fault(error):
            raise
        return 1
