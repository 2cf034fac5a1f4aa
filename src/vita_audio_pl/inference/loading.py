"""A model folder, made ready to decode."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vita_audio_pl.codecs.protocol import Codec
from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import Fields, read_json_if_there
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.models.released import ENCODER_FOLDER, load_released
from vita_audio_pl.models.sensevoice import load_front_end
from vita_audio_pl.models.sensevoice_frontend import SenseVoiceFrontEnd
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.models.weight_files import verify_model_files
from vita_audio_pl.text.rendering import RenderOptions
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.vocabulary import Vocabulary, special_tokens

VANILLA = DecodePattern.of("vanilla")
_MOST_LEAD_IN = 1000


@dataclass(frozen=True)
class LoadedModel:
    """What a model folder holds.

    Attributes:
        model: weights, in evaluation mode.
        tokenizer: text part of the vocabulary.
        vocabulary: all of it.
        codec_dir: folder of the codec that made the codes (`codecs.load_codec` reads it); None where there is none.
        manifest: the stage's manifest; empty for weights that no stage of ours made.
        pattern: decoding pattern that the folder names; Vanilla without one.
        ratio: interval ratio of the answers that the model was trained on; without a manifest, the pattern's.
        lead_in_codes: codes of silence before the audio of those answers.
        speech_input_dir: folder with the public files of the model's audio encoder; None for models that read codes.
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

    @cached_property
    def runtime(self) -> Runtime:
        """The model prepared for decoding, made once."""
        return Runtime(self.model)

    def rendering(self, codec: Codec) -> RenderOptions:
        """How the training data writes spoken answers.

        codec: the model's own, whose silence the answers begin with.
        """
        silence = codec.silence(self.lead_in_codes) if self.lead_in_codes else ()
        return RenderOptions(self.ratio, lead_in=tuple(int(code) for code in silence))

    @cached_property
    def front_end(self) -> SenseVoiceFrontEnd | None:
        """Makes the features that the audio encoder hears; None for models that read codes.

        Raises:
            UserError: the encoder's configuration or feature statistics are not in the folder.
        """
        return None if self.speech_input_dir is None else load_front_end(self.speech_input_dir)


def load_speech_model(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> LoadedModel:
    """Loads a model folder (`runs/NAME/STAGE/model`), the folder of its stage, or published weights with a tokenizer.

    Args:
        device: where the weights go.
        dtype: converted to; None keeps the file's.

    Raises:
        UserError: the folder is missing, incomplete or damaged, or its parts do not belong together.
    """
    folder = model_folder(folder)
    verify_model_files(folder)
    tokenizer = TextTokenizer.load(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
    config, manifest, generation = (
        read_json_if_there(folder / name) for name in ("config.json", "manifest.json", "generation_config.json")
    )
    vocabulary = _vocabulary(tokenizer, config, manifest, folder)
    model = load_released(folder, dtype=dtype, device=device).eval().requires_grad_(False)
    if vocabulary.continuous_input and model.config.context_of_audio is None:
        model.config.context_of_audio = vocabulary.context_of_audio
    runs = generation.get("mtp_inference_mode") or manifest.get("decode_pattern")
    ratio = manifest.get("text_audio_interval_ratio")
    try:
        pattern = DecodePattern.of(runs) if runs else VANILLA
        trained_ratio = IntervalRatio.of(ratio) if ratio else IntervalRatio.behind(pattern)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    return LoadedModel(
        model,
        tokenizer,
        vocabulary,
        folder / "codec" if (folder / "codec").is_dir() else None,
        manifest,
        pattern,
        trained_ratio,
        _lead_in_codes(manifest, folder),
        folder / ENCODER_FOLDER if model.speech_input is not None else None,
    )


def model_folder(folder: Path | str) -> Path:
    """The folder with `config.json`: `folder` itself, or `model` inside the folder of a stage.

    Raises:
        UserError: neither holds a model.
    """
    folder = Path(folder)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if not folder.exists():
        raise UserError(f"there is no model folder {folder}; train one, or give a folder such as runs/NAME/sft/model")
    raise UserError(f"{folder} is no model folder: it has no config.json; the stage that makes it may not be finished")


def _lead_in_codes(manifest: dict[str, Any], folder: Path) -> int:
    fields = Fields(manifest, str(folder / "manifest.json"))
    for section in ("config", "rendering"):
        if not fields.has(section):
            return 0
        fields = fields.section(section)
    return fields.integer("lead_in_codes", least=0, most=_MOST_LEAD_IN, default=0)


def _vocabulary(tokenizer: TextTokenizer, config: dict[str, Any], manifest: dict[str, Any], folder: Path) -> Vocabulary:
    """The vocabulary whose padded size is the model's; the manifest's fingerprint, or a power of two, says how many codes."""
    fields = Fields(config, str(folder / "config.json"))
    first_code = fields.integer("speech_token_offset", default=tokenizer.n_text + len(special_tokens(False)))
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
