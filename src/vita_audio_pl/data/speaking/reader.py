"""The recipe's `speak`: which messages of a corpus are synthesised, and the reader that adds their audio."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vita_audio_pl.config.fields import did_you_mean
from vita_audio_pl.data.readers.base import AnyAudio, Filtered, Part, RawSample, Reader, ToSpeak, Unreadable, attempt
from vita_audio_pl.data.speaking.voices import VoiceSettings, recipe_voice
from vita_audio_pl.errors import UserError, shown
from vita_audio_pl.text import ASR_INSTRUCTION, AUDIO_PLACEHOLDER, Message

_ROLES = ("user", "assistant")
_KEYS = ("roles", "most_characters", "tts")


@dataclass(frozen=True)
class Speak:
    """Which messages without audio are synthesised.

    Attributes:
        roles: whose messages. An assistant's text is followed by its audio; a user's text is replaced by it.
        most_characters: samples with a longer text to synthesise are filtered.
        voice: default voice, unless the command line names one.
    """

    roles: tuple[str, ...] = ("assistant",)
    most_characters: int = 1000
    voice: VoiceSettings | None = None

    @classmethod
    def of(cls, value: Any, where: str) -> "Speak":
        """From a recipe: `[assistant]`, or `{roles: [user, assistant], most_characters: 500, tts: {kind: espeak}}`.

        Raises:
            UserError: it is neither, or names a voice that recipes may not use.
        """
        given = {"roles": value} if isinstance(value, list) else value
        if not isinstance(given, Mapping):
            raise UserError(
                f"{where}: 'speak' is {shown(value)}; give the roles whose messages are spoken, as in 'speak: [assistant]'"
            )
        if unknown := sorted(map(str, set(given) - set(_KEYS))):
            near = did_you_mean(unknown[0][:100], _KEYS)
            raise UserError(f"{where}: 'speak' has no '{unknown[0]:.100}'; it has {', '.join(_KEYS)}{near}")
        roles, most = given.get("roles", ["assistant"]), given.get("most_characters", 1000)
        if not isinstance(roles, list) or not roles or not all(role in _ROLES for role in roles):
            raise UserError(f"{where}: the roles of 'speak' are {shown(roles)}; give a list of {' and '.join(_ROLES)}")
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise UserError(f"{where}: 'most_characters' of 'speak' is {shown(most)}; give a whole number of 1 or more")
        voice = recipe_voice(given["tts"], where) if "tts" in given else None
        return cls(tuple(dict.fromkeys(roles)), most, voice)


@dataclass(frozen=True)
class SpeakingReader:
    """A corpus with synthesised messages.

    Attributes:
        reader: reader of the corpus.
        speak: which messages.
        voice: everything that the audio depends on (`voice_facts`); part of the identity of every part.
    """

    reader: Reader
    speak: Speak
    voice: Mapping[str, Any]

    def parts(self) -> list[Part]:
        facts = json.dumps([self.speak.roles, self.speak.most_characters, self.voice], sort_keys=True)
        return [replace(part, identity=f"{part.identity} spoken {facts}") for part in self.reader.parts()]

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        for sample in self.reader.read(part):
            yield sample if isinstance(sample, Unreadable) else attempt(sample.conversation.id, self._spoken, sample)

    def _spoken(self, sample: RawSample) -> RawSample:
        there, audios, messages = iter(sample.audios), list[AnyAudio](), []
        writes = False  # the user has asked for a transcript, which is not said again
        for number, message in enumerate(sample.conversation.messages, 1):
            audios += [next(there) for _ in range(message.n_audios)]
            writes = ASR_INSTRUCTION in message.content if message.role == "user" else writes
            if message.role in self.speak.roles and not message.n_audios and not writes:
                text = message.content.strip()
                if len(text) > self.speak.most_characters:
                    raise Filtered(
                        "text too long to speak",
                        f"message {number} has {len(text)} characters, more than {self.speak.most_characters} to be spoken",
                    )
                audios.append(ToSpeak(f"{sample.conversation.id} message {number}", text))
                written = "" if message.role == "user" else f"{message.content}\n"
                message = Message(message.role, f"{written}{AUDIO_PLACEHOLDER}")
            messages.append(message)
        conversation = replace(sample.conversation, messages=tuple(messages), audios=tuple(map(str, audios)))
        return replace(sample, conversation=conversation, audios=tuple(audios))
