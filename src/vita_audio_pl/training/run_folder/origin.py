"""Settings that follow from the weights that a stage starts from, read from small files before torch is imported."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import read_json, read_json_if_there
from vita_audio_pl.models.families import family_of_folder, is_plain
from vita_audio_pl.storage.model_folders import CONFIG, find_model_if_there, part_of, read_manifest, whole_model
from vita_audio_pl.training.settings import CHAIN, StageConfig, TrainConfig

_RATES = ("learning_rate", "head_rate_factor")
_DIMENSIONS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "max_position_embeddings",
)
_BESIDE_BACKBONE = "mctp.json"  # in a plain folder that a model of ours was exported to


def apply_origin(config: DictConfig, on_command_line: Collection[str]) -> None:
    """Fill in, in place, the settings that follow from the model that the stage starts from.

    A plain Qwen2 or Qwen3 folder given as `init_from` becomes `model.pretrained`. Dimensions in `model` are the
    folder's. If the stage starts from pretrained weights, its rates are the published recipe's unless the command line
    or an
    experiment sets others: those of the small scale are for random weights.

    Args:
        on_command_line: names of the settings on the command line.

    Raises:
        UserError: the command line gives a dimension that differs from the folder's, or a later stage starts from
            a plain backbone.
    """
    if config.init_from is not None:
        found = find_model_if_there(config.init_from, config.paths.runs)
        if found is not None:
            config.init_from = str(found)
            if is_plain_backbone(found):
                _check_takes_a_backbone(config, found)
                config.init_from, config.model.pretrained = None, str(found)
    start = _start(config)
    if start is None or not (start / CONFIG).is_file():
        return
    for name, value in dimensions(start).items():
        key = f"model.{name}"
        if key in on_command_line and config.model[name] != value:
            raise UserError(
                f"{key}={config.model[name]} is given, but the model in {start} has {value}; leave {key} out"
            )
        config.model[name] = value
    if is_pretrained(start):
        scale, published = (_numbers(name, config.stage.name) for name in (config.scale.name, "published"))
        for name in _RATES:
            if f"stage.{name}" not in on_command_line and name in scale and config.stage[name] == scale[name]:
                config.stage[name] = published.get(name, config.stage[name])


def describe_rates(config: TrainConfig) -> str | None:
    """The line about rates that `apply_origin` chose; None if they are the scale's own."""
    scale, published = (_numbers(name, config.stage.name) for name in (config.scale.name, "published"))
    rates = {name: getattr(config.stage, name) for name in _RATES}
    if not scale or rates == scale or rates != published:
        return None
    return (
        f"the weights are pretrained, so the rates are the published recipe's: stage.learning_rate={rates['learning_rate']:g} "
        f"and stage.head_rate_factor={rates['head_rate_factor']:g} (scale={config.scale.name} has "
        f"{scale['learning_rate']:g} and {scale['head_rate_factor']:g}, for random weights); give others to change them"
    )


def start_tokenizer(config: TrainConfig) -> Path | None:
    """The folder whose tokenizer the small spoken world has to be prepared with; None for the world's own.

    Raises:
        UserError: the pretrained model is not there, or has no tokenizer.
    """
    start = _start(config)
    if start is not None and str(start) == config.model.pretrained:
        pretrained_folder(config.model.pretrained)
    if start is None or not (start / CONFIG).is_file() or not is_pretrained(start):
        return None
    folder = part_of(start, "tokenizer") or whole_model(start)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json; copy the model's own there, so that the data gets its ids")
    return folder


def pretrained_folder(path: str) -> Path:
    """Where `model.pretrained` is.

    Raises:
        UserError: it is not there.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"model.pretrained: there is no folder {folder}; download the model there, or give model.pretrained=DIR "
            "(model.pretrained=null starts from random weights)"
        )
    fields = read_json_if_there(folder / CONFIG)
    if fields and not is_plain(fields):
        raise UserError(
            f"model.pretrained={folder} is a '{fields.get('model_type')}' model, not a plain Qwen2 or Qwen3 folder; give it as "
            "init_from"
        )
    return folder


def is_plain_backbone(folder: Path) -> bool:
    """Whether the folder holds a base model, without our audio tokens, rather than one of the published layout or ours."""
    plain = is_plain(read_json(folder / CONFIG)) if (folder / CONFIG).is_file() else False
    return plain and not (folder / _BESIDE_BACKBONE).is_file() and not read_manifest(folder)


def is_pretrained(folder: Path) -> bool:
    """Whether the weights in a model folder descend from pretrained ones: true for all that were not trained here."""
    manifest = read_manifest(folder)
    if not manifest:
        return True
    return bool(manifest.get("pretrained") or (manifest.get("config") or {}).get("model", {}).get("pretrained"))


def dimensions(folder: Path) -> dict[str, Any]:
    """The settings of `model` that a folder's `config.json` determines.

    Raises:
        UserError: no known backbone family.
    """
    fields = read_json(folder / CONFIG)
    family = family_of_folder(fields, folder / CONFIG)
    found = {name: fields[name] for name in _DIMENSIONS if fields.get(name) is not None}
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
    layers, heads = fields.get("num_hidden_layers"), fields.get("num_nextn_predict_layers") or 0
    form = str((fields | read_json_if_there(folder / _BESIDE_BACKBONE)).get("head_form", "mctp"))
    if isinstance(layers, int) and isinstance(heads, int):
        found["num_hidden_layers"] = layers - (heads if form == "mctp" else 0)
    if family.head_dim is None and found.get("head_dim") == (found.get("hidden_size") or 0) // (
        found.get("num_attention_heads") or 1
    ):
        found.pop("head_dim")  # stated explicitly, although the family's files omit it
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    own = {"heads": form} if heads or (folder / "beside_backbone.safetensors").is_file() else {}
    return {"family": family.model_type, "head_dim": family.head_dim} | numbers | own


def _start(config: DictConfig | TrainConfig) -> Path | None:
    """The model folder that the stage starts from, if it exists already."""
    if config.init_from is not None:
        return Path(config.init_from)
    parents = config.variant.parents.get(config.stage.name) or []
    for parent in parents:
        folder = Path(config.paths.runs) / config.run_name / parent / "model"
        if (folder / CONFIG).is_file():
            return folder
    return None if config.model.pretrained is None else Path(config.model.pretrained)


def _check_takes_a_backbone(config: DictConfig, folder: Path) -> None:
    stage = config.stage.name
    if stage != CHAIN and config.variant.parents.get(stage):
        raise UserError(
            f"init_from={folder} is a plain backbone, and stage '{stage}' of {config.variant.name} starts from "
            f"{' or '.join(config.variant.parents[stage])}; begin with stage={config.variant.stages[0]} or stage=chain, or "
            f"allow it with 'variant.parents.{stage}=[]'"
        )


def _numbers(scale: str, stage: str) -> dict[str, float]:
    """The rates of a stage at a scale; empty if the scale has none for it."""
    path = asset_dir("conf") / "numbers" / scale / f"{stage}.yaml"
    if not path.is_file():
        return {}
    default = {"head_rate_factor": StageConfig.head_rate_factor}
    return default | {name: value for name, value in OmegaConf.load(path).items() if name in _RATES}
