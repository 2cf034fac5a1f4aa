"""Settings of the decoding benchmark, separate from it so that `--help` is quick."""

from dataclasses import dataclass

from vita_audio_pl.benchmarking.sizes import ModelSize
from vita_audio_pl.config.decoding import QUANTIZE, VERIFY_MODES
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern


@dataclass
class DecodingSize(ModelSize):
    """A model with random weights; `codes` of the vocabulary's rows are audio codes."""

    intermediate_size: int = setting(512, "width of the feed-forward layers", at_least=1)
    layers: int = setting(28, "layers of the backbone", at_least=1)
    codes: int = setting(2000, "rows of the vocabulary that are audio codes", at_least=1)


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
    )
    kernels: list[str] = setting(
        ["auto"], "layouts of matrices in float32 on a CPU, each measured; auto = the quickest here for each mode"
    )
    quantize: list[str] = setting([], "also measure with weights held so: int8, int8_dynamic, int4", choices=QUANTIZE)
    modes: list[str] = setting(
        ["vanilla", "balance", "boost", "turbo"], "decoding modes, each measured with all settings below"
    )
    verify: list[str] = setting(
        ["none", "greedy"], "verification modes; vanilla is measured without", choices=VERIFY_MODES
    )
    sessions: list[int] = setting([1, 8], "sessions decoded together", at_least=1)
    constrain: list[bool] = setting([False, True], "whether audio spans may hold audio tokens only")
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
