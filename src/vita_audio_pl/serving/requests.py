"""Request bodies, validated before anything is done; errors become a sentence."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, field_validator

from vita_audio_pl.codecs.protocol import Codec
from vita_audio_pl.config.decoding import DecodingConfig, Sampling
from vita_audio_pl.config.fields import did_you_mean
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.loading import ModelDescription
from vita_audio_pl.inference.sequence import Options

T = TypeVar("T")
NO_FUNCTIONS = "this model answers in text and speech and calls no functions; leave tools out"
_LONGEST_LIST = 1000
AudioFormat = Literal["wav", "mp3", "flac", "opus", "pcm"]


def _short(value: Any) -> Any:
    """Refuse a list that is not meant as what is asked for: of millions of entries, pydantic finds millions of errors."""
    if isinstance(value, list) and len(value) > _LONGEST_LIST:
        raise ValueError(f"should have at most {_LONGEST_LIST} entries")
    return value


class Decoding(BaseModel):
    """Decoding options of a request, as `decoding`; an addition to OpenAI's fields.

    mode: turbo, boost, balance, vanilla or a pattern such as [1, 10, 4, 10]; by default the model's own for speech.
        Omitted fields use the server's settings.
    """

    model_config = ConfigDict(extra="forbid")

    mode: str | list[int] | None = None
    verify: Literal["none", "greedy", "sample", "groups"] | None = None
    first_chunk: Literal["verified", "draft"] = "verified"
    constrain: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=10)
    top_k: int | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    max_new_tokens: int | None = Field(default=None, ge=1)

    _short = field_validator("mode", mode="before")(_short)

    def options(
        self,
        loaded: ModelDescription,
        codec: Codec | None,
        server: DecodingConfig,
        most: int,
        spoken: bool,
        **of_request: float | int | None,
    ) -> Options:
        """Options for the decoder.

        Args:
            codec: the model's; None where it only writes.
            server: the settings of the server.
            most: most tokens of an answer; a request may ask for fewer.
            spoken: whether the answer is speech, in which heads write by default.
            of_request: sampling settings that the request itself has; those of `decoding` take precedence.

        Raises:
            UserError: contradictory settings, or such as need heads, of a model without any.
        """
        vocabulary = loaded.vocabulary
        usual = server.sampling
        names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
        said = {name: _either(getattr(self, name), of_request.get(name)) for name in names}
        sampling = Sampling(**(asdict(usual) | {name: value for name, value in said.items() if value is not None}))
        return Options(
            loaded.decode_pattern(self.mode, spoken, self.verify),
            min(self.max_new_tokens or most, most),
            frozenset([vocabulary.im_end]),
            sampling,
            SpanConstraint.of(vocabulary) if _either(self.constrain, server.constrain) else None,
            first_chunk=(vocabulary.begin_of_audio, vocabulary.end_of_audio) if self.first_chunk == "draft" else None,
            **loaded.verification(_either(self.verify, server.verify), server.slack, codec),
        )


class _Body(BaseModel):
    """A request's body. Fields beside those of the class are refused if they ask for something: a misspelt one would change nothing."""

    model_config = ConfigDict(extra="allow")

    harmless: ClassVar[frozenset[str]] = frozenset()

    def check(self) -> None:
        """Refuse what is not done here rather than answer as if it had not been asked for.

        Raises:
            UserError: a field asks for it.
        """
        refuse(
            [name for name, value in (self.model_extra or {}).items() if value and name not in self.harmless],
            type(self).model_fields,
        )


def refuse(asked: Sequence[str], known: Iterable[str]) -> None:
    """Refuse fields that cannot be followed.

    Raises:
        UserError: there are some.
    """
    if asked:
        near = did_you_mean(asked[0], known) if len(asked) == 1 else ""
        raise UserError(f"{' and '.join(asked)[:200]} cannot be followed by this server; leave it out{near}")


class SpeechRequest(_Body):
    """`/v1/audio/speech`."""

    model: str = ""
    input: str = Field(min_length=1)
    voice: str | dict[str, Any] | None = None
    response_format: AudioFormat = "mp3"
    speed: float = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    decoding: Decoding = Decoding()


class ChatAudio(BaseModel):
    """Audio format of a chat answer."""

    voice: str | dict[str, Any] | None = None
    format: Literal["wav", "mp3", "flac", "opus", "pcm16", "pcm"] = "wav"


class ChatRequest(_Body):
    """`/v1/chat/completions`."""

    # who asks, why, and how it is to be billed, cached or thought about
    harmless = frozenset(
        "user store metadata service_tier safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options "
        "reasoning_effort verbosity parallel_tool_calls tool_choice function_call".split()
    )

    model: str = ""
    messages: Annotated[list[dict[str, Any]], FailFast()] = Field(min_length=1)
    modalities: list[Literal["text", "audio"]] | None = None
    audio: ChatAudio | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=10)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: Any = None
    logprobs: bool | None = None
    logit_bias: dict[str, Any] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    n: int | None = 1
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    decoding: Decoding = Decoding()

    _short = field_validator("modalities", mode="before")(_short)

    def check(self) -> None:
        super().check()
        if self.tools or self.functions:
            raise UserError(NO_FUNCTIONS)
        if self.n not in (None, 1):
            raise UserError("n is fixed at 1: ask again for another answer")
        names = ("stop", "logprobs", "logit_bias", "presence_penalty", "frequency_penalty")
        asked = [name for name in names if getattr(self, name)]
        if (self.response_format or {}).get("type", "text") != "text":
            asked.append("response_format")
        more = self.model_extra or {}
        asked += [name for name in ("tool_choice", "function_call") if more.get(name) not in (None, "none", "auto")]
        refuse(asked, ())


def decoding_of_form(fields: Iterable[tuple[str, Any]], others: Collection[str]) -> Decoding:
    """The decoding options of a form: `decoding` as JSON, or `decoding[NAME]` as OpenAI's client sends it.

    others: the fields that the form may have beside it.

    Raises:
        UserError: an option is not valid, or there is another field.
    """
    said: dict[str, Any] = {}
    for name, value in fields:
        inner = re.fullmatch(r"decoding\[(\w+)\](\[\])?", name)
        if inner is not None and inner[2]:
            said.setdefault(inner[1], []).append(value)
        elif inner is not None:
            said[inner[1]] = value
        elif name == "decoding":
            try:
                given = json.loads(value) if value else {}
            except (ValueError, TypeError, RecursionError):
                given = None
            if not isinstance(given, dict):
                raise UserError("decoding is not a JSON object")
            said |= given
        elif name not in others:
            raise UserError(f"there is no field {name[:100]}")
    found: Decoding = checked(Decoding, said, of="decoding")
    return found


def _either(said: T | None, usual: T) -> T:
    return usual if said is None else said


def sentence_of(errors: Sequence[Any], of: str = "") -> str:
    """The first of pydantic's errors in a request, as a sentence; of: the field that was validated."""
    first: dict[str, Any] = errors[0] if errors else {"loc": (), "type": "", "msg": "it cannot be read"}
    # names of types stand between the fields of a union
    named = (str(part) for part in (of, *first["loc"]) if part not in ("body", ""))
    place = ".".join(part for part in named if not re.match(r"[A-Z]|(str|int|float|bool)$|\w+\[", part))
    match first["type"]:
        case "missing":
            return f"{place or 'the body'} is missing"[:400]
        case "extra_forbidden":
            return f"there is no field {place}"[:400]
        case "too_short" | "string_too_short":
            return f"{place} is empty"[:400]
        case "json_invalid":
            return "the body is not JSON"
    if not place and first["type"] in ("model_attributes_type", "model_type", "dict_type"):
        return "the body must be a JSON object, with content-type: application/json"
    message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{place or 'the request'}: it {message}"[:400] if message[:6] == "should" else f"{place}: {message}"[:400]


def checked(kind: type[Any], value: Any, *, strict: bool | None = None, of: str = "") -> Any:
    """`value` as an instance of the pydantic model `kind`.

    Args:
        strict: whether a value of another type, such as a number in a string, is refused; None: as the model says.
        of: the field that has the value, for the sentence.

    Raises:
        UserError: it is not valid.
    """
    try:
        return kind.model_validate(value, strict=strict)
    except ValidationError as error:
        raise UserError(sentence_of(error.errors(include_url=False, include_input=False), of)) from None
    except RecursionError:
        raise UserError("the request is nested too deeply") from None
