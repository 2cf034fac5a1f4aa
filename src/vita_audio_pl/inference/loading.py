"""Loading a model folder for decoding."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vita_audio_pl.codecs.protocol import Codec, load_codec
from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import Fields, read_json_if_there
from vita_audio_pl.inference.checks import refuse_without_heads
from vita_audio_pl.inference.code_groups import verification
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.models.backbone import backbone_notes, heads_beside
from vita_audio_pl.models.families import is_plain
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.released import ENCODER_FOLDER, HEADS
from vita_audio_pl.models.sensevoice import load_front_end
from vita_audio_pl.models.sensevoice_frontend import SenseVoiceFrontEnd
from vita_audio_pl.models.speech_input import RELEASED_PREFIX
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.models.weight_files import tensor_names, verify_model_files
from vita_audio_pl.storage.model_folders import find_model, part_of, whole_model
from vita_audio_pl.text.rendering import RenderOptions
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.vocabulary import Vocabulary, special_tokens

VANILLA = DecodePattern.of("vanilla")
_MOST_LEAD_IN = 1000


class ModelDescription:
    """What is known of a model beside its weights, and what follows from it; attributes as in `ModelFacts`."""

    tokenizer: TextTokenizer
    vocabulary: Vocabulary
    codec_dir: Path | None
    pattern: DecodePattern
    ratio: IntervalRatio
    lead_in_codes: int
    speech_input_dir: Path | None
    n_heads: int

    def decode_pattern(
        self, mode: str | Sequence[int] | None, spoken: bool, verify: str | None = None
    ) -> DecodePattern:
        """The pattern of a mode; if none is given, the model's own for spoken answers, and Vanilla for written ones or without heads.

        Args:
            mode: that was asked for by name; None if none was. Likewise `verify`.

        Raises:
            UserError: they need heads, and the model has none.
        """
        refuse_without_heads(self.n_heads, mode, verify)
        if mode is not None:
            return DecodePattern.of(mode)
        return self.pattern if spoken and self.n_heads else VANILLA

    def rendering(self, codec: Codec) -> RenderOptions:
        """The format of spoken answers in the training data.

        codec: the model's codec; answers begin with its silence.
        """
        silence = codec.silence(self.lead_in_codes) if self.lead_in_codes else ()
        return RenderOptions(self.ratio, lead_in=tuple(int(code) for code in silence))

    def verification(self, verify: str, slack: float | None, codec: Codec | None = None) -> dict[str, Any]:
        """`verify` and `groups` of `Options`, of this model's codec; made once for each looseness.

        codec: the model's, where it is loaded already; else it is loaded if it is needed.

        Raises:
            UserError: `groups` without a codec whose codes have a vector each.
        """
        if (verify, slack) not in self._verifications:
            loaded = self._codec if codec is None else lambda: codec
            self._verifications[verify, slack] = verification(verify, slack, loaded, self.vocabulary)
        return self._verifications[verify, slack]

    def _codec(self) -> Codec | None:
        return None if self.codec_dir is None else load_codec(self.codec_dir)

    @cached_property
    def _verifications(self) -> dict[tuple[str, float | None], dict[str, Any]]:
        return {}

    @cached_property
    def front_end(self) -> SenseVoiceFrontEnd | None:
        """Makes the features that the audio encoder hears; None for models that read codes.

        Raises:
            UserError: the encoder's configuration or feature statistics are not in the folder.
        """
        return None if self.speech_input_dir is None else load_front_end(self.speech_input_dir)


@dataclass(frozen=True)
class ModelFacts(ModelDescription):
    """What a model folder says beside its weights.

    Attributes:
        tokenizer: the text tokenizer.
        vocabulary: text, special and audio tokens.
        manifest: the stage's manifest; empty for weights that were not trained here.
        pattern: decoding pattern stored in the folder; Vanilla if none is.
        ratio: interval ratio of the training answers; without a manifest, the pattern's.
        lead_in_codes: codes of silence before the audio of those answers.
        n_heads: MCTP heads.
        codec_dir: folder of the codec that made the codes, for `codecs.load_codec`; None if there is none.
        speech_input_dir: folder with the published files of the model's audio encoder; None for models that read codes.
    """

    tokenizer: TextTokenizer
    vocabulary: Vocabulary
    manifest: dict[str, Any]
    pattern: DecodePattern
    ratio: IntervalRatio
    lead_in_codes: int
    n_heads: int
    codec_dir: Path | None = None
    speech_input_dir: Path | None = None


@dataclass(frozen=True)
class LoadedModel(ModelDescription):
    """The contents of a model folder: as in `ModelFacts`, and the weights.

    Attributes:
        model: weights, in evaluation mode.
        kernels: layout of the matrices for decoding; see `Runtime`.
    """

    model: SpeechLM
    tokenizer: TextTokenizer
    vocabulary: Vocabulary
    codec_dir: Path | None
    manifest: dict[str, Any]
    pattern: DecodePattern
    ratio: IntervalRatio
    lead_in_codes: int = 0
    speech_input_dir: Path | None = None
    kernels: str = "auto"

    @cached_property
    def n_heads(self) -> int:  # type: ignore[override]
        """MCTP heads."""
        return self.model.n_heads

    @cached_property
    def runtime(self) -> Runtime:
        """The model prepared for decoding, created once; it removes the weights from `model`."""
        return Runtime(self.model, kernels=self.kernels, release=True)

    @property
    def facts(self) -> ModelFacts:
        """All but the weights."""
        return ModelFacts(**{field.name: getattr(self, field.name) for field in fields(ModelFacts)})


def read_model_facts(folder: Path) -> ModelFacts:
    """Read the small files of a model folder of any layout; facts that no manifest states are derived from them.

    Raises:
        UserError: the folder has no tokenizer, or its parts do not belong together.
    """
    tokenizer = TextTokenizer.load(part_of(folder, "tokenizer") or whole_model(folder))
    config, manifest, generation = (
        read_json_if_there(folder / name) for name in ("config.json", "manifest.json", "generation_config.json")
    )
    noted, first_code, context = backbone_notes(folder)
    given = config | {} if first_code is None else config | {"speech_token_offset": first_code}
    hears = context is not None or config.get("context_of_audio_id") is not None or _has_encoder(folder)
    vocabulary = _vocabulary(tokenizer, given, manifest, folder, hears)
    runs = generation.get("mtp_inference_mode") or noted or manifest.get("decode_pattern")
    ratio = manifest.get("text_audio_interval_ratio")
    try:
        pattern = DecodePattern.of(runs) if runs else VANILLA
        trained_ratio = IntervalRatio.of(ratio) if ratio else IntervalRatio.behind(pattern)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    lead_in = _lead_in_codes(manifest, folder)
    return ModelFacts(tokenizer, vocabulary, manifest, pattern, trained_ratio, lead_in, heads_in(folder))


def heads_in(folder: Path) -> int:
    """MCTP heads of a model folder of any layout."""
    config = read_json_if_there(folder / "config.json")
    return heads_beside(folder) if is_plain(config) else int(config.get(HEADS) or 0)


def load_speech_model(
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    codec_folder: Path | str | None = None,
    encoder_folder: Path | str | None = None,
    runs: Path | str = "runs",
    kernels: str = "auto",
    quantize: str | None = None,
) -> LoadedModel:
    """Load a model by any name that `find_model` accepts: a run, a stage, a model folder, adapters, published weights.

    Args:
        device: device of the weights.
        dtype: dtype to convert to; None keeps the file's.
        codec_folder: folder of the audio codec; None uses the one in the model folder, if there is one.
        encoder_folder: folder with the audio encoder's front end (`config.yaml`, `am.mvn`); None likewise.
        runs: folder of runs, to find runs by name.
        kernels: layout of the matrices for decoding; see `Runtime`.
        quantize: hold the linear layers in few bits, see `models.quantised`; None as the folder has them.

    Raises:
        UserError: the folder is missing, incomplete, inconsistent or damaged.
    """
    folder = find_model(folder, runs)
    verify_model_files(folder)
    model = load_model(folder, dtype=dtype, device=device, quantize=quantize)  # and verifies the files
    model.eval().requires_grad_(False)
    facts = read_model_facts(folder)
    if facts.vocabulary.continuous_input and model.config.context_of_audio is None:
        model.config.context_of_audio = facts.vocabulary.context_of_audio
    hearing = None
    if model.speech_input is not None:
        hearing = Path(encoder_folder) if encoder_folder else part_of(folder, ENCODER_FOLDER) or folder / ENCODER_FOLDER
    return LoadedModel(
        model,
        facts.tokenizer,
        facts.vocabulary,
        Path(codec_folder) if codec_folder else part_of(folder, "codec"),
        facts.manifest,
        facts.pattern,
        facts.ratio,
        facts.lead_in_codes,
        hearing,
        kernels,
    )


def _has_encoder(folder: Path) -> bool:
    """Whether the weights include an audio encoder, in the published layout."""
    return any(name.startswith(f"{RELEASED_PREFIX}audio_model.") for name in tensor_names(folder))


def _lead_in_codes(manifest: dict[str, Any], folder: Path) -> int:
    fields = Fields(manifest, str(folder / "manifest.json"))
    for section in ("config", "rendering"):
        if not fields.has(section):
            return 0
        fields = fields.section(section)
    return fields.integer("lead_in_codes", least=0, most=_MOST_LEAD_IN, default=0)


def _vocabulary(
    tokenizer: TextTokenizer, config: dict[str, Any], manifest: dict[str, Any], folder: Path, hears: bool
) -> Vocabulary:
    """The vocabulary whose padded size is the model's; the manifest's fingerprint, or a power of two, says how many codes.

    hears: through an encoder, so that there is one special token more.
    """
    fields = Fields(config, str(folder / "config.json"))
    first_code = fields.integer("speech_token_offset", default=tokenizer.n_text + len(special_tokens(hears)))
    n_specials = first_code - tokenizer.n_text
    continuous = n_specials == len(special_tokens(True))
    if n_specials not in (len(special_tokens(False)), len(special_tokens(True))):
        raise UserError(
            f"{folder}: the codes begin at token {first_code}, but the tokenizer has {tokenizer.n_text} text tokens; "
            "the tokenizer belongs to another model"
        )
    rows = fields.integer("vocab_size")
    sizes = [n for n in range(rows - first_code, rows - first_code - 8, -1) if n >= 1]
    choices = [v for v in (tokenizer.vocabulary(n, continuous) for n in sizes) if v.size == rows]
    if "vocabulary" in manifest:
        choices = [v for v in choices if v.fingerprint == manifest["vocabulary"]]
    choices.sort(key=lambda v: v.n_codes & (v.n_codes - 1) != 0)
    if not choices:
        raise UserError(
            f"{folder}: the model has {rows} vocabulary rows, which do not fit its tokenizer of {tokenizer.n_text} text "
            "tokens; the tokenizer belongs to another model"
        )
    return choices[0]
