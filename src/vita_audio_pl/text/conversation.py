"""A conversation in its external form: one JSON line of messages and audio paths."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vita_audio_pl.errors import UserError, kind_in_words
from vita_audio_pl.text.lines import load_json
from vita_audio_pl.text.messages import ROLES, Message, as_list, is_blank, parse_messages, refuse_pictures, text_of
from vita_audio_pl.text.vocabulary import AUDIO_PLACEHOLDER

ASR_INSTRUCTION = "Convert the speech to text."
TTS_INSTRUCTION = "Convert the text to speech."
PAIR = ("chosen", "rejected")
"""Keys of the two answers in a line of pairs."""
_MESSAGES = ("messages", "conversations")


@dataclass(frozen=True)
class Conversation:
    """Messages and their audio files: the n-th `<|audio|>` is a placeholder for the n-th path.

    Attributes:
        id: name in reports.
        messages: at least one, none blank, at most one system message.
        audios: paths, one per placeholder.
        is_pair: the messages are a prompt with its chosen answer, and then the same prompt with the rejected one.

    Raises:
        UserError: no messages, an unknown role, an empty message, two audios in an assistant's message, two messages of
            the system, or another number of placeholders than of paths.
    """

    id: str
    messages: tuple[Message, ...]
    audios: tuple[str, ...] = ()
    is_pair: bool = False

    def __post_init__(self) -> None:
        if not self.messages:
            raise UserError(f"{self.id}: there are no messages; a conversation needs at least one")
        for number, message in enumerate(self.messages, 1):
            here = f"{self.id}: message {number}"
            if message.role not in ROLES:
                raise UserError(f"{here} has the role {message.role!r}; use one of {', '.join(ROLES)}")
            if is_blank(message.content):
                raise UserError(
                    f"{here} ({message.role}) is empty; give it text or {AUDIO_PLACEHOLDER}, or leave it out"
                )
            text_of(message.content, f"{here} ({message.role})")
            if message.role == "assistant" and message.n_audios > 1:
                raise UserError(
                    f"{here} is an answer with {message.n_audios} audios; an answer is interleaved with one audio, "
                    "so join them or split the answer into turns"
                )
        if sum(message.role == "system" for message in self.messages) > 1 + self.is_pair:
            raise UserError(
                f"{self.id}: there are two system messages, and a conversation has one: join them, or leave one out"
            )
        placeholders = sum(message.n_audios for message in self.messages)
        if placeholders != len(self.audios):
            raise UserError(
                f"{self.id}: the messages hold {placeholders} {AUDIO_PLACEHOLDER} for {len(self.audios)} audio paths; "
                "each placeholder needs one path and each path one placeholder"
            )

    @property
    def speakers(self) -> tuple[str, ...]:
        """The role that speaks each of `audios`."""
        return tuple(message.role for message in self.messages for _ in range(message.n_audios))

    @classmethod
    def from_json(cls, value: dict[str, Any] | str, where: str) -> "Conversation":
        """Read `{"messages": [{"role", "content"}, ...], "audios": [path, ...], "id": name}`, as text or parsed.

        Messages may also be in the styles of OpenAI and ShareGPT (`text/messages.py`); `conversations` and `audio` are
        other names of `messages` and `audios`, and a `system` field next to them is the first message.

        Args:
            value: one line of a JSONL file, or the object in it. `audios` and `id` are optional.
            where: `file:line`, for error messages, and the id if there is none.

        Raises:
            UserError: anything is missing, of the wrong type or at odds, with `where` in front.
        """
        value = _object(value, where)
        refuse_pictures(value, where)
        id = value.get("id")
        if id is not None and (not isinstance(id, str | int) or isinstance(id, bool)):
            raise UserError(f"{where}: 'id' must be a name or a number, not {kind_in_words(id)}")
        messages = as_list(_only(value, _MESSAGES, where))
        system = value.get("system")
        if system is not None and isinstance(messages, list):
            messages = [{"role": "system", "content": system}, *messages]
        parsed, audios = parse_messages(messages, _audio_paths(value, where), where)
        if not all(isinstance(path, str) and path for path in audios):
            raise UserError(f"{where}: an audio must be given as a path or a data URI")
        checked = cls(where, parsed, audios)
        return checked if id in (None, "") else dataclasses.replace(checked, id=str(id))

    @classmethod
    def pair_from_json(cls, value: dict[str, Any] | str, where: str) -> "Conversation":
        """Reads a pair of answers: `from_json`'s object whose `messages` end with the prompt, with `chosen` and `rejected`.

        Each answer is a text, a message, or a list of one message. `audios` are those of the prompt, of the chosen and of the
        rejected answer, in this order.

        Raises:
            UserError: as `from_json`, an answer is missing or of another role, or both are the same.
        """
        given = _object(value, where)
        answers = []
        for name in PAIR:
            answer = given.get(name)
            parsed = as_list(answer)
            if (
                isinstance(parsed, list)
                and parsed
                and all(isinstance(one, dict) and one.keys() & {"role", "from"} for one in parsed)
            ):
                answer = parsed  # any other text that is a list in JSON is an answer of just these words
            if isinstance(answer, list) and len(answer) == 1:
                answer = answer[0]
            if answer is None or isinstance(answer, list):
                raise UserError(
                    f"{where}: '{name}' must be one answer, and is {kind_in_words(given.get(name))}; each line of pairs has "
                    "'messages', 'chosen' and 'rejected'"
                )
            answers.append({"role": "assistant", "content": answer} if isinstance(answer, str) else answer)
        key = next((name for name in _MESSAGES if given.get(name) is not None), _MESSAGES[0])
        asked = as_list(given.get(key))
        whole = cls.from_json({**given, key: [*asked, *answers] if isinstance(asked, list) else asked}, where)
        *prompt, chosen, rejected = whole.messages
        if (chosen.role, rejected.role) != ("assistant", "assistant") or not prompt:
            raise UserError(f"{where}: 'chosen' and 'rejected' must be answers of the assistant, and follow a prompt")
        heard = len(whole.audios) - chosen.n_audios - rejected.n_audios
        said = whole.audios[heard : heard + chosen.n_audios], whole.audios[heard + chosen.n_audios :]
        if (chosen, said[0]) == (rejected, said[1]):
            raise UserError(f"{where}: 'chosen' and 'rejected' are the same answer")
        audios = (*whole.audios[:heard], *said[0], *whole.audios[:heard], *said[1])
        return cls(whole.id, (*prompt, chosen, *prompt, rejected), audios, is_pair=True)

    def tts_rewrite(self) -> "Conversation":
        """Prepend the text of `Convert the text to speech.` requests to the answers that follow.

        This makes text-to-speech an answer of interleaved text and audio as well. The text is the user's
        message without the instruction, audio placeholders and surrounding blanks; the latest request counts.
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


def _object(value: dict[str, Any] | str, where: str) -> dict[str, Any]:
    """The object that a line holds."""
    if isinstance(value, str):
        try:
            value = load_json(value)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}); each line must hold one whole object") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: a sample must be an object with 'messages', not {kind_in_words(value)}")
    return value


def _only(value: dict[str, Any], names: tuple[str, str], where: str) -> Any:
    """The value under one of two names."""
    found = [value[name] for name in names if value.get(name) is not None]
    if len(found) > 1:
        raise UserError(f"{where}: it has both '{names[0]}' and '{names[1]}'; leave one of them out")
    return found[0] if found else None


def _audio_paths(value: dict[str, Any], where: str) -> Sequence[str]:
    audios = as_list(_only(value, ("audios", "audio"), where))
    if isinstance(audios, str) and "audio" in value:
        audios = [audios]
    if audios is None:
        return ()
    if not isinstance(audios, list) or not all(isinstance(path, str) and path for path in audios):
        raise UserError(f"{where}: 'audios' must be a list of paths")
    return audios
