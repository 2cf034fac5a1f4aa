"""A conversation as people write it down: one JSON line of messages and audio paths."""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.text.vocabulary import AUDIO_PLACEHOLDER

ROLES = ("system", "user", "assistant")
"""Known roles; a role's place in this tuple is its number in indexes."""

ASR_INSTRUCTION = "Convert the speech to text."
TTS_INSTRUCTION = "Convert the text to speech."

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Message:
    """One message; `<|audio|>` in its content stands for the next audio file of the conversation."""

    role: str
    content: str

    @property
    def n_audios(self) -> int:
        """Number of audio files this message takes."""
        return self.content.count(AUDIO_PLACEHOLDER)


@dataclass(frozen=True)
class Conversation:
    """Messages and their audio files: the n-th `<|audio|>` stands for the n-th path.

    Attributes:
        id: name in reports.
        messages: in order, at least one, none blank.
        audios: paths, as many as there are placeholders.

    Raises:
        UserError: no messages, an unknown role, an empty message, two audios in an assistant's message, or another
            number of placeholders than of paths.
    """

    id: str
    messages: tuple[Message, ...]
    audios: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.messages:
            raise UserError(f"{self.id}: there are no messages; a conversation needs at least one")
        for number, message in enumerate(self.messages, 1):
            here = f"{self.id}: message {number}"
            if message.role not in ROLES:
                raise UserError(f"{here} has the role {message.role!r}; use one of {', '.join(ROLES)}")
            if not message.content.strip():
                raise UserError(
                    f"{here} ({message.role}) is empty; give it text or {AUDIO_PLACEHOLDER}, or leave it out"
                )
            if not message.content.isascii() and _LONE_SURROGATE.search(message.content):
                raise UserError(f"{here} ({message.role}) holds half a character; write the file as UTF-8 again")
            if message.role == "assistant" and message.n_audios > 1:
                raise UserError(
                    f"{here} is an answer with {message.n_audios} audios; an answer is interleaved with one audio, "
                    "so join them or split the answer into turns"
                )
        placeholders = sum(message.n_audios for message in self.messages)
        if placeholders != len(self.audios):
            raise UserError(
                f"{self.id}: the messages hold {placeholders} {AUDIO_PLACEHOLDER} for {len(self.audios)} audio paths; "
                "each placeholder needs one path and each path one placeholder"
            )

    @classmethod
    def from_json(cls, value: dict[str, Any] | str, where: str) -> "Conversation":
        """Reads `{"messages": [{"role", "content"}, ...], "audios": [path, ...], "id": name}`, written out or parsed.

        Args:
            value: one line of a JSONL file, or the object it holds. `audios` and `id` may be left out.
            where: `file:line`, for messages, and the id where there is none.

        Raises:
            UserError: anything is missing, of the wrong type or at odds, with `where` in front.
        """
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON ({error}); each line must hold one whole object") from error
        if not isinstance(value, dict):
            raise UserError(f"{where}: a sample must be an object with 'messages', not a {type(value).__name__}")
        messages = value.get("messages")
        if not isinstance(messages, list) or not messages:
            raise UserError(f"{where}: there are no messages; 'messages' must be a list of {{role, content}}")
        audios = value.get("audios")
        audios = [] if audios is None else audios
        if not isinstance(audios, list) or not all(isinstance(path, str) and path for path in audios):
            raise UserError(f"{where}: 'audios' must be a list of paths")
        id = value.get("id")
        if id is not None and not isinstance(id, str | int):
            raise UserError(f"{where}: 'id' must be a name or a number, not a {type(id).__name__}")
        parsed = tuple(_message(message, f"{where}: message {number}") for number, message in enumerate(messages, 1))
        checked = cls(where, parsed, tuple(audios))
        return checked if id in (None, "") else dataclasses.replace(checked, id=str(id))

    def tts_rewrite(self) -> "Conversation":
        """Puts the text of `Convert the text to speech.` requests in front of the answers that follow.

        So text-to-speech, too, is an answer of interleaved text and audio. The text is what is left of the user's
        message without the instruction, audio placeholders and outer blanks; the latest request counts.
        """
        text = ""
        rewritten: list[Message] = []
        for message in self.messages:
            if message.role == "user" and TTS_INSTRUCTION in message.content:
                text = message.content.replace(TTS_INSTRUCTION, "").replace(AUDIO_PLACEHOLDER, "").strip()
            elif message.role == "assistant" and text:
                message = Message(message.role, text + message.content)
            rewritten.append(message)
        return dataclasses.replace(self, messages=tuple(rewritten))


def _message(value: Any, here: str) -> Message:
    if not isinstance(value, dict):
        raise UserError(f"{here} must be an object with 'role' and 'content', not a {type(value).__name__}")
    for key in ("role", "content"):
        if not isinstance(value.get(key), str):
            problem = f"has no '{key}'" if key not in value else f"has a '{key}' that is not text"
            raise UserError(f'{here} {problem}; give it as {{"role": ..., "content": ...}}')
    return Message(value["role"], value["content"])
