"""Settings of the decoding benchmark, separate from it so that `--help` is quick."""

from dataclasses import dataclass
from itertools import product

from vita_audio_pl.benchmarking.sizes import ModelSize
from vita_audio_pl.config.decoding import QUANTIZE, VERIFY_MODES
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern

FIRST_TEXT, FIRST_CODE_FROM_END = 3, 8
"""Rows of the vocabulary before its text, and after its codes."""


@dataclass
class DecodingSize(ModelSize):
    """A model with random weights; `codes` of the vocabulary's rows are audio codes."""

    intermediate_size: int = setting(512, "width of the feed-forward layers", at_least=1)
    layers: int = setting(28, "layers of the backbone", at_least=1)
    codes: int = setting(2000, "rows of the vocabulary that are audio codes", at_least=1)

    @property
    def first_code(self) -> int:
        """The codes are the last rows but `FIRST_CODE_FROM_END`."""
        return self.vocabulary - FIRST_CODE_FROM_END - self.codes

    def check(self) -> None:
        if self.first_code <= FIRST_TEXT:
            most = self.vocabulary - FIRST_CODE_FROM_END - FIRST_TEXT - 1
            raise UserError(
                f"decoding_size.codes is {self.codes}: of decoding_size.vocabulary={self.vocabulary} rows, at most {most} can be "
                "codes; give fewer codes or a larger vocabulary"
            )


@dataclass
class DecodingProtocol:
    """What is decoded, and how."""

    prompt_tokens: int = setting(32, "prompt tokens of each session, with random weights", at_least=1)
    new_tokens: int = setting(
        256, "tokens each session writes; with random weights they follow a synthetic interleaved answer", at_least=1
    )
    agreements: list[float] = setting(
        [1.0, 0.0],
        "chances that a draft is what the backbone writes, with random weights; verification is measured with each",
        at_least=0,
        at_most=1,
        filled=True,
    )
    kernels: list[str] = setting(
        ["auto"],
        "layouts of matrices in float32 on a CPU, each measured; auto = the quickest here for each mode",
        filled=True,
    )
    quantize: list[str] = setting([], "also measure with weights held so: int8, int8_dynamic, int4", choices=QUANTIZE)
    modes: list[str] = setting(
        ["vanilla", "balance", "boost", "turbo"], "decoding modes, each measured with all settings below", filled=True
    )
    verify: list[str] = setting(
        ["none", "greedy"], "verification modes; vanilla is measured without", choices=VERIFY_MODES, filled=True
    )
    sessions: list[int] = setting([1, 8], "sessions decoded together", at_least=1, filled=True)
    constrain: list[bool] = setting([False, True], "whether audio spans may hold audio tokens only", filled=True)
    repetitions: int = setting(3, "repetitions of each measurement", at_least=1)
    first_chunks: int = setting(10, "repetitions of the first chunk alone", at_least=1)
    transformers: bool = setting(
        True,
        "also decode with transformers' own loop on as large a model, in turn with the others (Vanilla, one session)",
    )
    model_folder: str | None = setting(None, "trained model to measure; null = random weights")
    samples: str | None = setting(
        None, "JSONL file with prompts for the trained model; null = synthetic prompts", exists=True
    )
    limit: int = setting(20, "prompts taken from samples", at_least=1)
    codec: str | None = setting(None, "codec folder, to time the vocoder; null = the trained model's own", exists=True)
    graphs: bool | None = setting(None, "use CUDA graphs; null = on a GPU")
    compile: bool = setting(False, "use torch.compile (GPU)")

    def check(self) -> None:
        for mode in self.modes:
            DecodePattern.of(mode)
        if self.model_folder is None and "groups" in self.verify:
            raise UserError("decoding.verify=groups needs decoding.model_folder; made-up drafts say nothing of it")
        if self.samples is not None and self.model_folder is None:
            raise UserError("decoding.samples needs decoding.model_folder, the trained model to measure on them")


@dataclass(frozen=True)
class Setting:
    """One combination that is measured; `name` of a mode, or `transformers` for its own loop.

    agreement: chance that a made-up draft is kept; None for a trained model, whose drafts are what they are.
    """

    mode: str
    verify: str = "none"
    sessions: int = 1
    constrained: bool = False
    agreement: float | None = None
    kernels: str = "auto"
    quantize: str | None = None

    @property
    def label(self) -> str:
        """Short name for tables."""
        parts = [self.mode]
        parts += [f"verify={self.verify}"] if self.verify != "none" else []
        if self.verify != "none" and self.agreement is not None:
            parts.append(
                {1.0: "all accepted", 0.0: "none accepted"}.get(self.agreement, f"{self.agreement:.0%} accepted")
            )
        parts += ["constrained"] if self.constrained else []
        parts += [f"kernels={self.kernels}"] if self.kernels != "auto" else []
        parts += [self.quantize] if self.quantize else []
        return " ".join(parts + ([f"x{self.sessions}"] if self.sessions > 1 else []))


def settings_of(protocol: DecodingProtocol, n_heads: int, trained: bool = False) -> list[Setting]:
    """All combinations, without those that can only be Vanilla again: its verification, and other modes of a model without heads.

    Args:
        trained: drafts are the model's own, so that there is no chance to choose.

    Raises:
        UserError: none is left.
    """
    held: list[tuple[str, str | None]] = [(kernels, None) for kernels in protocol.kernels]
    held += [("auto", scheme) for scheme in protocol.quantize]
    combinations = product(protocol.sessions, protocol.constrain, held, protocol.verify, protocol.modes)
    found = [
        Setting(mode, verify, sessions, constrained, agreement, kernels, quantize)
        for sessions, constrained, (kernels, quantize), verify, mode in combinations
        if (verify == "none" or mode != "vanilla")
        and (n_heads or (verify == "none" and not DecodePattern.of(mode).uses_heads))
        for agreement in ([None] if trained or verify == "none" else protocol.agreements)
    ]
    if not found:
        raise UserError(
            f"nothing of decoding.modes={protocol.modes} with decoding.verify={protocol.verify} is to be measured: Vanilla is "
            "without verification, and other modes need heads" + ("" if n_heads else ", of which the model has none")
        )
    return found
