"""What the decoding benchmark measures: numbers only, so that a command shows its settings at once."""

from dataclasses import dataclass, field

from vita_audio_pl.benchmarking.sizes import ModelSize
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.sequence import VERIFY_MODES
from vita_audio_pl.interleave import DecodePattern


@dataclass
class DecodingSize(ModelSize):
    """A model with random weights; `codes` of the vocabulary's rows are audio codes."""

    intermediate_size: int = 512
    layers: int = 28
    codes: int = 2000


@dataclass
class DecodingProtocol:
    """What is decoded, and how.

    Attributes:
        prompt_tokens, new_tokens: of each session, with random weights; what is written follows a made-up interleaved
            answer, so that spans, chunks and drafts come as in life while all the arithmetic is done.
        agreement: chance that a draft is what the backbone writes, with random weights.
        modes, verify, sessions, constrain: every combination is measured; verification of Vanilla is left out.
        first_chunks: times the first chunk alone is measured.
        transformers: also decode with transformers' own loop, as the published system does (Vanilla, one session).
        model_folder, samples: measure a trained model on the prompts of a JSONL file instead; `limit` of them.
        codec: codec folder for the vocoder's share; the trained model's own by default.
        graphs: CUDA graphs, by default on a GPU; compile: fuse with torch.compile, for a GPU.
    """

    prompt_tokens: int = 32
    new_tokens: int = 256
    agreement: float = 1.0
    modes: list[str] = field(default_factory=lambda: ["vanilla", "balance", "boost", "turbo"])
    verify: list[str] = field(default_factory=lambda: ["none", "greedy"])
    sessions: list[int] = field(default_factory=lambda: [1, 8])
    constrain: list[bool] = field(default_factory=lambda: [False, True])
    repetitions: int = 3
    first_chunks: int = 10
    transformers: bool = True
    model_folder: str | None = None
    samples: str | None = None
    limit: int = 20
    codec: str | None = None
    graphs: bool | None = None
    compile: bool = False

    def check(self) -> None:
        for mode in self.modes:
            DecodePattern.of(mode)
        for verify in self.verify:
            if verify not in VERIFY_MODES:
                raise UserError(f"decoding.verify holds {verify!r}; use {', '.join(VERIFY_MODES)}")
        if not 0 <= self.agreement <= 1:
            raise UserError(f"decoding.agreement={self.agreement} is no chance; give 0 to 1")
        if min([self.prompt_tokens, self.new_tokens, self.repetitions, self.first_chunks, *self.sessions]) < 1:
            raise UserError("decoding: prompt_tokens, new_tokens, sessions, repetitions and first_chunks start at 1")
        if self.samples is not None and self.model_folder is None:
            raise UserError("decoding.samples needs decoding.model_folder, the trained model to measure on them")
