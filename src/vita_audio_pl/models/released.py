"""The published VITA-Audio checkpoint layout: read and written tensor for tensor.

Head `k`'s decoder layer is `model.layers.{L+k}` beside the backbone's L layers, its projection and norms are
`mtp_projs.k`, `mtp_embed_norms.k` and `mtp_hidden_norms.k`; `config.json` counts L + K layers and
`num_nextn_predict_layers` = K of them heads; `generation_config.json` holds the decoding pattern as
`mtp_inference_mode`. Parallel heads, which no published model has, are `parallel_heads.k` under a `model_type` of their own. A tied model's file has no `lm_head.weight`. The Plus variants have their speech encoder and its
adapter under `model.audio_model` and `model.audio_projection`; the encoder's sizes are in `speech_input/config.yaml`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN

from vita_audio_pl.config.decoding import QUANTIZE
from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import Fields, read_json
from vita_audio_pl.models.families import BackboneConfig, Family, family_of, released_family
from vita_audio_pl.models.heads import FORMS
from vita_audio_pl.models.lora import late_parameters
from vita_audio_pl.models.sensevoice import SenseVoiceConfig
from vita_audio_pl.models.speech_input import RELEASED_PREFIX
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.models.tensor_file import LateTensor
from vita_audio_pl.models.weight_files import (
    WeightFolder,
    save_weights,
    write_json,
)

_PARTS = {
    "proj": "mtp_projs",
    "embed_norm": "mtp_embed_norms",
    "hidden_norm": "mtp_hidden_norms",
    "residual": "parallel_heads",
}
_COUNTED = {"mctp": _PARTS["proj"], "parallel": _PARTS["residual"]}
HEADS = "num_nextn_predict_layers"
FORM = "head_form"
MOST_LAYERS, MOST_HEADS = 1024, 100
_SCALED = ("factor", "original_max_position_embeddings", "attention_factor")
ROPE_KINDS = {
    "default": (),
    "linear": _SCALED,
    "dynamic": _SCALED,
    "yarn": (*_SCALED, "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "llama3": (*_SCALED, "low_freq_factor", "high_freq_factor"),
}
"""Kinds of rotary embedding that a model may have, and the numbers that each takes."""
ENCODER_FOLDER = "speech_input"


def released_key(name: str, n_layers: int) -> str:
    """Published key of our parameter `name`, for a backbone of `n_layers` layers."""
    if name.startswith("speech_input."):
        return name.replace("speech_input.", RELEASED_PREFIX, 1)
    if not name.startswith("heads."):
        return name
    _, number, part, rest = name.split(".", 3)
    if part == "layer":
        return f"model.layers.{n_layers + int(number)}.{rest}"
    return f"{_PARTS[part]}.{number}.{rest}"


def released_keys(model: SpeechLM) -> dict[str, str]:
    """Published key -> our parameter name, for every parameter once (tied ones under the embeddings)."""
    n_layers = model.config.backbone.num_hidden_layers
    return {released_key(name, n_layers): name for name, _ in model.named_parameters()}


def save_released(
    model: SpeechLM,
    folder: Path | str,
    *,
    decode_pattern: Sequence[int] | None = None,
    first_code: int | None = None,
    max_shard_bytes: int = 5 * 10**9,
    weights: Mapping[str, LateTensor] | None = None,
) -> None:
    """Writes `config.json`, `generation_config.json` and safetensors in the published layout, LoRA adapters merged.

    A tensor is read when it is written, so this takes the memory of one.

    Args:
        decode_pattern: the runs of the decoding pattern, such as [1, 10, 4, 10].
        first_code: id of the first audio code.
        max_shard_bytes: size from which the weights are split into several files.
        weights: parameters by name where `model`, which may be on the meta device, does not hold them.
    """
    n_layers = model.config.backbone.num_hidden_layers
    late = late_parameters(model, weights)
    tensors = {released_key(name, n_layers): value for name, value in late.items()}
    save_weights(tensors, folder, max_shard_bytes)
    save_encoder_config(model, Path(folder))
    write_json(Path(folder) / "config.json", released_config(model, first_code))
    generation = generation_defaults(model)
    if decode_pattern is not None:
        generation["mtp_inference_mode"] = list(decode_pattern)
    write_json(Path(folder) / "generation_config.json", generation)


def generation_defaults(model: SpeechLM) -> dict[str, Any]:
    """What `generation_config.json` holds of any model: with that file, transformers asks `config.json` for no end."""
    fields = backbone_dict(model.config.backbone)
    ends = {key: fields[key] for key in ("eos_token_id", "pad_token_id") if fields[key] is not None}
    return {"do_sample": False} | ends


def released_config(model: SpeechLM, first_code: int | None = None) -> dict[str, Any]:
    """`config.json` of the published layout for `model`."""
    family, form = family_of(model.config.backbone), model.config.heads
    chained = FORMS[form].chained
    config = backbone_dict(model.config.backbone) | {
        "architectures": [f"{family.classes}MTPForCausalLM"],
        "model_type": family.released_type + ("" if chained else f"_{form}"),  # which others refuse
        "num_hidden_layers": model.config.backbone.num_hidden_layers + chained * model.n_heads,
        "num_nextn_predict_layers": model.n_heads,
        "torch_dtype": type_name(model),
    }
    own = {
        "speech_token_offset": first_code,
        "context_of_audio_id": model.config.context_of_audio,
        FORM: None if chained else form,
        "quantize": model.config.quantize,
    }
    return config | {key: value for key, value in own.items() if value is not None}


def save_encoder_config(model: SpeechLM, folder: Path) -> None:
    """Writes `speech_input/config.yaml` for a model with an encoder, in the encoder's public format."""
    if model.config.encoder is not None:
        (folder / ENCODER_FOLDER).mkdir(parents=True, exist_ok=True)
        (folder / ENCODER_FOLDER / "config.yaml").write_text(model.config.encoder.as_yaml(), encoding="utf-8")


def encoder_config(folder: Path, shapes: dict[str, tuple[int, ...]], prefix: str) -> SenseVoiceConfig | None:
    """Sizes of the encoder whose weights are among `shapes` behind `prefix`; None where there are none.

    They are read from `speech_input/config.yaml`; without that file they are the public SenseVoiceSmall's. The
    recognition layer counts as the weights have it.
    """
    if not any(key.startswith(f"{prefix}audio_model.") for key in shapes):
        return None
    path = folder / ENCODER_FOLDER / "config.yaml"
    config = SenseVoiceConfig.read(path) if path.is_file() else SenseVoiceConfig()
    recognition = shapes.get(f"{prefix}audio_model.model.ctc.ctc_lo.weight")
    return replace(config, ctc_tokens=recognition[0] if recognition else 0)


def type_name(model: SpeechLM) -> str:
    """Type of the weights as `config.json` spells it, such as `bfloat16`."""
    return str(model.lm_head.weight.dtype).removeprefix("torch.")


_BACKBONE_FIELDS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)


def backbone_dict(backbone: BackboneConfig) -> dict[str, Any]:
    """The fields of a plain `config.json` but for its kind, with RoPE the way both old and new transformers read it."""
    rope = dict(cast(dict[str, Any], backbone.rope_parameters))  # transformers fills them in where they are not given
    theta = rope.pop("rope_theta")
    scaling = None if rope.get("rope_type", "default") == "default" else rope
    fields = {name: getattr(backbone, name) for name in (*_BACKBONE_FIELDS, *family_of(backbone).flags)}
    if getattr(backbone, "head_dim", None) is not None:
        fields["head_dim"] = backbone.head_dim
    return fields | {"rope_theta": theta, "rope_scaling": scaling, "use_sliding_window": False}


def config_from_fields(fields: Mapping[str, Any], family: Family, n_layers: int, where: Path | str) -> BackboneConfig:
    """The configuration of a backbone of `n_layers` layers, from fields named as in `config.json`; `where` names them in errors.

    Raises:
        UserError: a field is missing, or the model uses sliding windows, which packed rows do not support.
    """
    read = Fields(fields, str(where))
    if read.flag("use_sliding_window"):
        raise UserError(f"{where} asks for sliding-window attention, which is not supported; use a model without it")
    hidden, heads = read.integer("hidden_size"), read.integer("num_attention_heads")
    key_heads = read.integer("num_key_value_heads", default=heads)
    size = read.integer("head_dim") if read.has("head_dim") else family.head_dim
    if family.head_dim is None and hidden == (size or 0) * heads:
        size = None  # as the family's files have it
    if size is None and hidden % heads or heads % key_heads or (size or hidden // heads) % 2:
        divided = f"hidden_size={hidden}" if size is None else f"head_dim={size}"
        raise UserError(
            f"{where}: {divided} must give num_attention_heads={heads} heads of even size, and these must divide by "
            f"num_key_value_heads={key_heads}"
        )
    kept: dict[str, Any] = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": read.integer("intermediate_size"),
        "vocab_size": read.integer("vocab_size"),
        "max_position_embeddings": read.integer("max_position_embeddings", default=32768),
        "rms_norm_eps": read.number("rms_norm_eps", most=1.0, default=1e-6),
        "initializer_range": read.number("initializer_range", most=10.0, default=0.02),
        "attention_dropout": read.number("attention_dropout", most=1.0, default=0.0),
        "tie_word_embeddings": read.flag("tie_word_embeddings"),
        "hidden_act": read.text("hidden_act", default="silu"),
        **{name: read.flag(name) for name in family.flags},
        **({} if size is None else {"head_dim": size}),
    }
    if kept["hidden_act"] not in ACT2FN:
        raise UserError(
            f"{where}: hidden_act is {kept['hidden_act'][:40]!r}, which is not an activation of transformers"
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if read.has(name):
            one_or_more = read.integers if isinstance(fields[name], list) else read.integer
            found = one_or_more(name, least=0, most=kept["vocab_size"] - 1)
            kept[name] = list(found) if isinstance(found, tuple) else found
    try:
        return family.config(**kept, num_hidden_layers=n_layers, rope_parameters=_rope(read, where))
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{where} does not describe a {family.classes} model: {said}") from None


def _rope(fields: Fields, where: Path | str) -> dict[str, Any]:
    """Parameters of the rotary embedding, of new (`rope_parameters`) or old files (`rope_theta` and `rope_scaling`)."""
    name = next((name for name in ("rope_parameters", "rope_scaling") if fields.has(name)), None)
    given = {} if name is None else fields.mapping(name)
    read = Fields(given, f"{where}: {name}")
    default = fields.number("rope_theta", least=1.0, most=1e12, default=10000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise UserError(f"{where}: rope_type is {str(kind)[:40]!r}; choose {', '.join(ROPE_KINDS)}")
    rope = {"rope_theta": read.number("rope_theta", least=1.0, most=1e12, default=default), "rope_type": kind}
    for key in ROPE_KINDS[kind]:
        if read.has(key):
            rope[key] = read.number(key, least=1e-6, most=1e9)
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = read.integer("original_max_position_embeddings")
    return rope


def read_released_config(folder: Path | str, attention: str = "per_document") -> SpeechLMConfig:
    """Model configuration from a published folder's `config.json`.

    Raises:
        UserError: the file is missing, not JSON, or of another kind of model.
    """
    path = Path(folder) / "config.json"
    fields = read_json(path)
    family = released_family(fields, path)
    read = Fields(fields, str(path))
    all_layers = read.integer("num_hidden_layers", most=MOST_LAYERS)
    n_heads = read.integer("num_nextn_predict_layers", least=0, most=MOST_HEADS, default=0)
    form = head_form(fields, n_heads, path)
    among = n_heads if FORMS[form].chained else 0
    if among >= all_layers:
        raise UserError(f"{path} counts {n_heads} heads among {all_layers} layers, which leaves no backbone")
    backbone = config_from_fields(fields, family, all_layers - among, path)
    place = read.integer("context_of_audio_id", least=0, default=0) if read.has("context_of_audio_id") else None
    quantize = read.text("quantize") if read.has("quantize") else None
    if quantize is not None and quantize not in QUANTIZE:
        raise UserError(f"{path}: quantize is {quantize[:40]!r}; it must be one of {', '.join(QUANTIZE)}")
    return SpeechLMConfig(backbone, n_heads, attention, context_of_audio=place, heads=form, quantize=quantize)


def head_form(fields: Mapping[str, Any], n_heads: int, where: Path | str) -> str:
    """The form of a folder's heads, of `models.heads.FORMS`, by the fields of its `config.json` or notes; `mctp` without heads.

    Raises:
        UserError: it is not known.
    """
    form = Fields(fields, str(where)).text(FORM, default="mctp")
    if form not in FORMS:
        raise UserError(f"{where}: {FORM} is {form[:40]!r}; it must be one of {', '.join(FORMS)}")
    return form if n_heads else "mctp"


def open_released(
    folder: Path | str, attention: str = "per_document"
) -> tuple[SpeechLM, list[tuple[WeightFolder, dict[str, str]]]]:
    """The model of a published folder on the meta device, and its weights, not read yet, with file key -> parameter name.

    Raises:
        UserError: the configuration is not one, or does not count the heads that are there.
    """
    config, weights = read_released_config(folder, attention), WeightFolder(folder)
    config.encoder = encoder_config(Path(folder), weights.shapes(), RELEASED_PREFIX)
    counted = _COUNTED[config.heads]
    held = len({key.split(".")[1] for key in weights.keys() if key.startswith(f"{counted}.")})
    if held != config.n_heads:
        raise UserError(
            f"{folder} holds {held} heads ({counted}.*), but its config.json says num_nextn_predict_layers="
            f"{config.n_heads}; they have to agree"
        )
    model = SpeechLM.on_meta(config)
    return model, [(weights, released_keys(model))]
