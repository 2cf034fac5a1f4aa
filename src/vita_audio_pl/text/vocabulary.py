"""Where every token id lies: text, special tokens, audio codes, padding."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vita_audio_pl.errors import UserError

AUDIO_PLACEHOLDER = "<|audio|>"
"""Stands in a message for the next audio file of the conversation."""

_PUBLISHED_SPECIALS = (
    *(f"<|{edge}_of_{kind}|>" for kind in ("image", "video", "patch") for edge in ("begin", "end", "context")),
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
    *(f"<|{edge}_of_{kind}|>" for kind in ("quad", "ref", "box") for edge in ("begin", "end")),
    "<|image|>",
    "<|video|>",
    AUDIO_PLACEHOLDER,
)


def special_tokens(continuous_input: bool = False) -> tuple[str, ...]:
    """Special tokens in the published order: 20, or 21 with `<|context_of_audio|>` for continuous audio input."""
    if not continuous_input:
        return _PUBLISHED_SPECIALS
    after_audio = _PUBLISHED_SPECIALS.index("<|end_of_audio|>") + 1
    return (*_PUBLISHED_SPECIALS[:after_audio], "<|context_of_audio|>", *_PUBLISHED_SPECIALS[after_audio:])


def code_token(code: int) -> str:
    """Name of an audio code's token."""
    return f"<|audio_{code}|>"


@dataclass(frozen=True)
class Vocabulary:
    """Ids in the published order: text tokens, special tokens, audio codes, padding up to a multiple of 8.

    Attributes:
        n_text: entries of the text tokenizer, its own control tokens included.
        n_codes: size of the codec's codebook.
        continuous_input: adds `<|context_of_audio|>`, the placeholder of one encoder frame.
        im_start: begins a turn; `im_end` ends it; `pad` fills rows (`<|endoftext|>`). All three are text entries.
        text_fingerprint: fingerprint of the text tokenizer, so that two of equal size are distinguished.

    Raises:
        UserError: a size below 1, or a control token outside the text entries.
    """

    n_text: int
    n_codes: int
    continuous_input: bool = False
    im_start: int = field(kw_only=True)
    im_end: int = field(kw_only=True)
    pad: int = field(kw_only=True)
    text_fingerprint: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if self.n_text < 1 or self.n_codes < 1:
            raise UserError(
                f"a vocabulary of {self.n_text} text tokens and {self.n_codes} codes is not possible; both must be at least 1"
            )
        for name in ("im_start", "im_end", "pad"):
            if not 0 <= getattr(self, name) < self.n_text:
                raise UserError(f"{name}={getattr(self, name)} is not among the {self.n_text} text tokens")

    @cached_property
    def specials(self) -> dict[str, int]:
        """Special token -> id."""
        return {token: self.n_text + i for i, token in enumerate(special_tokens(self.continuous_input))}

    @cached_property
    def begin_of_audio(self) -> int:
        """Marker in front of a span of codes or frames."""
        return self.specials["<|begin_of_audio|>"]

    @cached_property
    def end_of_audio(self) -> int:
        """Marker behind a span of codes or frames."""
        return self.specials["<|end_of_audio|>"]

    @cached_property
    def audio(self) -> int:
        """`<|audio|>`, the placeholder of a whole audio file; never part of rendered ids."""
        return self.specials[AUDIO_PLACEHOLDER]

    @cached_property
    def context_of_audio(self) -> int:
        """Placeholder of one frame of continuous audio input.

        Raises:
            UserError: this vocabulary has no continuous input.
        """
        if not self.continuous_input:
            raise UserError(
                "this vocabulary takes audio as codes and has no <|context_of_audio|>; use one with continuous input"
            )
        return self.specials["<|context_of_audio|>"]

    @cached_property
    def first_code(self) -> int:
        """Id of code 0."""
        return self.n_text + len(self.specials)

    @cached_property
    def used(self) -> int:
        """Number of ids that mean something; the rest up to `size` is padding."""
        return self.first_code + self.n_codes

    @cached_property
    def size(self) -> int:
        """Rows of the embedding: `used` padded to a multiple of 8."""
        return -(-self.used // 8) * 8

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal vocabularies (16 hex digits); kept in manifests."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def code_ids(self, codes: ArrayLike) -> NDArray[np.int32]:
        """Token ids of codes, int32, same shape.

        Raises:
            UserError: a code outside the codebook.
        """
        values = np.asarray(codes)
        if values.size and not (0 <= values.min() and values.max() < self.n_codes):
            raise UserError(
                f"codes run from {values.min()} to {values.max()}, but the codebook has {self.n_codes}; "
                "the audio was encoded by another codec"
            )
        return values.astype(np.int32) + np.int32(self.first_code)

    def is_code(self, ids: ArrayLike) -> NDArray[np.bool_]:
        """Mask of the ids that are audio codes; markers are not."""
        values = np.asarray(ids)
        return (values >= self.first_code) & (values < self.used)

    def codes_of(self, ids: ArrayLike) -> NDArray[np.int32]:
        """The codes among `ids`, in order, everything else left out. `(n_codes_found,)` int32."""
        values = np.asarray(ids)
        return values[self.is_code(values)].astype(np.int32) - np.int32(self.first_code)

    def token(self, id: int) -> str | None:
        """Name of a special token, code or padding row; None for a text token."""
        if id < self.n_text:
            return None
        if id < self.first_code:
            return special_tokens(self.continuous_input)[id - self.n_text]
        return code_token(id - self.first_code) if id < self.used else f"<|unused_{id}|>"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a manifest; `Vocabulary(**values)` reads them back."""
        return asdict(self)
