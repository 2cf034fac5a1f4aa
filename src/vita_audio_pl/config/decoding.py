"""How answers are decoded: the settings that every command which asks a model shares, declared once, here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vita_audio_pl.config.fields import setting
from vita_audio_pl.config.numbers import finite_number, whole_number
from vita_audio_pl.errors import UserError

VERIFY_MODES = ("none", "greedy", "sample", "groups")
VERIFY_MEANING = "none, greedy, sample, or groups, which is looser: whether the backbone verifies drafts"
QUANTIZE = ("int8", "int8_dynamic", "int4")
QUANTIZE_MEANING = (
    "hold the linear layers in int8, int8_dynamic (inputs are rounded too) or int4, by torchao; null = as they are"
)
KERNELS = ("auto", "rows", "columns", "packed")
_LEAST = 1e-6  # what logits are divided by; float32 holds what comes out
SLACK = 0.3
"""How loose `groups` is by default."""


def decoding_label(mode: str, verify: str, sampled: bool = False, quantize: str | None = None) -> str:
    """Name of a mode as shown: `boost`, `boost+verify` where drafts are checked exactly, `boost+groups`, `boost+sampled`,
    `boost+int8` where weights are held in few bits.
    """
    name = mode if verify == "none" else f"{mode}+{'groups' if verify == 'groups' else 'verify'}"
    name = f"{name}+sampled" if sampled else name
    return f"{name}+{quantize}" if quantize else name


def label_of(result: Mapping[str, Any]) -> str:
    """`decoding_label` of the facts of a result."""
    return decoding_label(
        str(result["mode"]), str(result.get("verify", "none")), "sampling" in result, result.get("quantize")
    )


DRAFTED_NOTHING = (
    "heads drafted nothing, since by the costs of passes, those measured on this machine or those in kernels=FILE, a draft does not "
    "pay, so this is Vanilla's speed"
)
"""Said of answers under verification whose mode has heads that never ran."""


@dataclass(unsafe_hash=True)
class Sampling:
    """Settings of one session; the default is greedy.

    Attributes:
        temperature: 0 = the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities reach this sum.
        repetition_penalty: logits of tokens seen before (prompt included) are divided by it where positive and
            multiplied where negative (arXiv 1909.05858).
        seed: of this session's draws; they depend on nothing that is decoded beside it.

    Raises:
        UserError: a value of another type or out of range.
    """

    temperature: float = setting(0.0, "0 = the most likely token", at_least=0)
    top_k: int = setting(0, "keep the k most likely tokens; 0 = all", at_least=0)
    top_p: float = setting(1.0, "keep the most likely tokens up to this total probability", above=0, at_most=1)
    repetition_penalty: float = setting(1.0, "penalty on tokens seen before; 1 = none", above=0)
    seed: int = setting(0, "random seed", at_least=0)

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty"):
            setattr(self, name, finite_number(getattr(self, name), name))
        for name in ("top_k", "seed"):
            setattr(self, name, whole_number(getattr(self, name), name, least=0))
        if not (self.temperature == 0 or self.temperature >= _LEAST):
            raise UserError(f"temperature={self.temperature} must be 0 (greedy), or {_LEAST} or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not self.repetition_penalty >= _LEAST:
            raise UserError(f"repetition_penalty={self.repetition_penalty} must be {_LEAST} or more; 1 means none")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    @property
    def plain_argmax(self) -> bool:
        """Whether the choice is the largest logit, with nothing done to it."""
        return self.greedy and self.repetition_penalty == 1


Greedy = Sampling()
"""The most likely token each time."""

TASKS = ("sts", "asr", "tts", "text")
"""Speech to speech, speech recognition, speech synthesis, text to text."""

WHEN_FULL = ("slide", "refuse")
"""When a conversation fills the context: drop its oldest exchanges, or refuse the next turn."""


def drafting_decides(verify: str, sampling: Sampling) -> bool:
    """Whether the answer depends on how far heads draft, and so on the costs of passes."""
    return verify == "groups" or (verify == "sample" and not sampling.greedy)


@dataclass
class DecodingConfig:
    """Settings of whatever asks a model; `inference.sequence.Options` is what one sequence gets of them."""

    verify: str = setting("none", VERIFY_MEANING, choices=VERIFY_MODES, common=True)
    slack: float | None = setting(
        None,
        "how loose verify=groups is: 1 - least cosine of two codes of a group; 0 = exact, null = 0.3",
        at_least=0,
        at_most=1,
    )
    constrain: bool = setting(True, "allow only audio tokens inside an audio span; false as published")
    max_new_tokens: int | None = setting(
        None,
        "most tokens of an answer; null = 1024, in an evaluation the bench's",
        at_least=1,
        common=True,
    )
    sampling: Sampling = field(default_factory=Sampling)
    graphs: bool | None = setting(None, "use CUDA graphs; null = on a GPU")
    kernels: str = setting(
        "auto",
        "layout of matrices in float32 on a CPU: auto = measured on this processor, rows (torch's own), columns, packed, or a "
        "file of recorded choices",
        exists=True,
        words=KERNELS,
    )


@dataclass
class WeightsConfig:
    """How the weights of a model that answers are held."""

    quantize: str | None = setting(None, QUANTIZE_MEANING, choices=QUANTIZE)
