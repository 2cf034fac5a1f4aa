"""Chat messages in the formats of common data sets, converted to one form.

Supported: our own (`{role, content}` with `<|audio|>`), OpenAI's and transformers' (content as a list of parts, audio
parts included), and ShareGPT's (`{from, value}` of human and gpt, with `<audio>`), as in LLaMA-Factory and VITA-Audio.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vita_audio_pl.errors import UserError, kind_in_words
from vita_audio_pl.text.lines import load_json
from vita_audio_pl.text.vocabulary import AUDIO_PLACEHOLDER

ROLES = ("system", "user", "assistant")
"""Known roles; indexes store a role's position in this tuple."""

SHAREGPT_AUDIO = "<audio>"

PICTURES = ("image", "images", "video", "videos")
"""Keys of images next to messages."""

_PICTURE_PARTS = {*PICTURES[::2], *(f"{kind}_{form}" for kind in PICTURES[::2] for form in ("url", "file"))}
_PICTURE_PARTS |= {"input_image", "input_video"}
_PICTURE_TAGS = ("<image>", "<video>")
_ROLE_OF = {**{role: role for role in ROLES}, "developer": "system", "human": "user", "gpt": "assistant"}
_UNSEEN = frozenset({"Cc", "Cf", "Mc", "Me", "Mn", "Zl", "Zp", "Zs"})
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Pictures(UserError):
    """A conversation about images or videos, which cannot be learnt without them; `reason` is its name in reports."""

    reason = "pictures"


def refuse_pictures(row: Mapping[str, Any], where: str) -> None:
    """Raise `Pictures` if any are listed next to the messages of a row."""
    for key in PICTURES:
        value = as_list(row.get(key))
        if any(item is not None for item in value) if isinstance(value, list | tuple) else value:
            raise Pictures(f"{where}: it has '{key}', and pictures are not read")


@dataclass(frozen=True)
class Message:
    """One message; `<|audio|>` in its content is a placeholder for the next audio file of the conversation."""

    role: str
    content: str

    @property
    def n_audios(self) -> int:
        """Number of audio files of this message."""
        return self.content.count(AUDIO_PLACEHOLDER)


def text_of(value: Any, what: str) -> str:
    """`value` if it is text. Other values (null, a number, a list, an object) are never converted to text.

    Raises:
        UserError: it is not text, or has an unpaired surrogate.
    """
    if not isinstance(value, str):
        raise UserError(f"{what} is {kind_in_words(value)}, not text")
    if not value.isascii() and _LONE_SURROGATE.search(value):
        raise UserError(f"{what} holds an unpaired surrogate; write the file as UTF-8 again")
    return value


def plain_text_of(value: Any, what: str) -> str:
    """Text without audio placeholders.

    Raises:
        UserError: see `text_of`, or it has `<|audio|>`.
    """
    text = text_of(value, what)
    if AUDIO_PLACEHOLDER in text:
        raise UserError(f"{what} holds {AUDIO_PLACEHOLDER}, which stands for an audio here and cannot be text")
    return text


def is_blank(text: str) -> bool:
    """Whether a text has nothing to read or say: only blanks, control and format characters, or stray marks."""
    return not text.strip() or all(unicodedata.category(char) in _UNSEEN for char in text)


def as_list(value: Any) -> Any:
    """A list from JSON text, as in CSV files and some exports; any other value unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            found = load_json(value)
            return found if isinstance(found, list) else value
    return value


def parse_messages(value: Any, audios: Sequence[Any] | None, where: str) -> tuple[tuple[Message, ...], tuple[Any, ...]]:
    """Messages and the audio files of their placeholders, in order.

    Empty system messages are dropped. Text parts of one message are concatenated as they are.

    Args:
        value: a list of messages in any of the formats, or its JSON text.
        audios: audio files listed next to them; None if the corpus has none, so that `<audio>` is an HTML tag.
        where: for error messages.

    Returns:
        The messages, and the audio files: those in `audios`, and those in audio parts. Their number may differ from
            that of the placeholders; the caller, who makes a `Conversation` of them, checks that.

    Raises:
        Pictures: there are images or videos.
        UserError: something is not a message, has an unknown role, or unreadable content.
    """
    value = as_list(value)
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{where}: there are no messages; 'messages' must be a list of {{role, content}}")
    parsed = [_message(message, f"{where}: message {number}") for number, message in enumerate(value, 1)]
    texts = [piece for turn in parsed for piece in turn.pieces if isinstance(piece, str)]
    own = any(AUDIO_PLACEHOLDER in text for text in texts)
    # if no audio is listed, `<audio>` in a role/content chat is an HTML tag
    foreign = not own and (bool(audios) or (audios is not None and any(turn.sharegpt for turn in parsed)))
    listed = iter(audios or ())
    messages: list[Message] = []
    sources: list[Any] = []
    for turn in parsed:
        content = ""
        for piece in turn.pieces:
            if not isinstance(piece, str):
                content += AUDIO_PLACEHOLDER
                sources += [piece.source] if piece.source is not None else [*_next(listed, 1)]
                continue
            text = piece.replace(SHAREGPT_AUDIO, AUDIO_PLACEHOLDER) if foreign else piece
            content += text
            sources += _next(listed, text.count(AUDIO_PLACEHOLDER))
        if not is_blank(content) or turn.role != "system":
            messages.append(Message(turn.role, content))
    return tuple(messages), (*sources, *listed)


def _next(listed: Iterator[Any], count: int) -> list[Any]:
    return [source for _, source in zip(range(count), listed, strict=False)]


@dataclass(frozen=True)
class _Audio:
    """An audio part; None = the next of the listed audio files."""

    source: Any


@dataclass(frozen=True)
class _Turn:
    """A message before its audio placeholders are resolved."""

    role: str
    pieces: tuple[str | _Audio, ...]
    sharegpt: bool


def _message(value: Any, here: str) -> _Turn:
    if not isinstance(value, Mapping):
        raise UserError(f"{here} must be an object with 'role' and 'content', not {kind_in_words(value)}")
    sharegpt = "role" not in value and "from" in value
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    for key in (role_key, content_key):
        if key not in value:
            raise UserError(f'{here} has no \'{key}\'; give it as {{"role": ..., "content": ...}}')
    role = value[role_key]
    if not isinstance(role, str) or role not in _ROLE_OF:
        named = f"{role!r:.60}" if isinstance(role, str) else kind_in_words(role)
        raise UserError(f"{here} has the role {named}; use one of {', '.join(ROLES)}")
    if value.get("tool_calls") or value.get("function_call"):
        raise UserError(f"{here} calls a tool, which cannot be trained here")
    content = value[content_key]
    if isinstance(content, list | tuple):
        pieces = tuple(_part(part, f"{here}: part {number}") for number, part in enumerate(content, 1))
    else:
        pieces = (text_of(content, f"{here}: its '{content_key}'"),)
        # elsewhere in a role/content chat it is a tag of HTML or XML
        bare = pieces[0].strip()
        for tag in _PICTURE_TAGS if _ROLE_OF[role] == "user" else ():
            if tag in bare if sharegpt else bare.startswith(tag) or bare.endswith(tag):
                raise Pictures(f"{here} has {tag}, and pictures are not read")
    return _Turn(_ROLE_OF[role], pieces, sharegpt)


def _part(value: Any, here: str) -> str | _Audio:
    if isinstance(value, str):
        return text_of(value, here)
    if not isinstance(value, Mapping):
        raise UserError(f"{here} must be text or an object with a 'type', not {kind_in_words(value)}")
    kind = value.get("type", "text")
    if isinstance(kind, str) and kind in _PICTURE_PARTS:
        raise Pictures(f"{here} is of the type {kind!r}, and pictures are not read")
    if kind == "text":
        return text_of(value.get("text"), f"{here}: its 'text'")
    if kind in ("audio", "input_audio", "audio_url"):
        return _Audio(_audio_source(value))
    named = f"{kind!r:.60}" if isinstance(kind, str) else kind_in_words(kind)
    raise UserError(f"{here} is of the type {named}; text and audio are read")


def _audio_source(part: Mapping[str, Any]) -> Any:
    """Path, data URI or object of an audio part; None if the part does not say."""
    for key in ("input_audio", "audio", "audio_url", "path", "url"):
        value = part.get(key)
        if isinstance(value, Mapping) and isinstance(value.get("data"), str):
            return f"data:audio/{value.get('format') or 'wav'};base64,{value['data']}"
        if isinstance(value, Mapping) and not value.get("bytes"):
            value = value.get("url") or value.get("path")
        if value is not None:
            return value
    return None
