"""Plain Qwen2 and Qwen3 folders as transformers reads them: base models in, a model's backbone out with its heads beside it."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import Fields, read_json, read_json_if_there
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.families import family_of, plain_family
from vita_audio_pl.models.lora import late_parameters
from vita_audio_pl.models.released import (
    FORM,
    MOST_HEADS,
    MOST_LAYERS,
    backbone_dict,
    config_from_fields,
    encoder_config,
    generation_defaults,
    head_form,
    released_keys,
    save_encoder_config,
    type_name,
)
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.models.tensor_file import file_order, write_tensors
from vita_audio_pl.models.weight_files import (
    INDEX,
    SINGLE,
    WeightFolder,
    save_weights,
    tensor_names,
    write_json,
)

BESIDE = "beside_backbone.safetensors"
"""Heads and speech encoder, under our names."""
_BESIDE = ("heads.", "speech_input.")
NOTES = "mctp.json"


def open_backbone(
    folder: Path | str, attention: str = "per_document"
) -> tuple[SpeechLM, list[tuple[WeightFolder, dict[str, str]]]]:
    """The model of a plain folder on the meta device, and its weights, not read yet, with file key -> parameter name.

    The folder holds single or sharded safetensors, tied (no `lm_head.weight`) or not. The model has the heads and the speech
    encoder that `save_backbone` left in the folder, otherwise none.

    Raises:
        UserError: it is not of a known family, or does not describe one.
    """
    folder = Path(folder)
    path = folder / "config.json"
    fields = read_json(path)
    n_layers = Fields(fields, str(path)).integer("num_hidden_layers", most=MOST_LAYERS)
    config = config_from_fields(fields, plain_family(fields, path), n_layers, path)
    beside = WeightFolder(folder, BESIDE) if (folder / BESIDE).is_file() else None
    shapes = {} if beside is None else beside.shapes()
    heads = _head_numbers(shapes)
    if len(heads) > MOST_HEADS or heads != set(range(len(heads))):
        raise UserError(f"{folder / BESIDE} does not hold heads 0, 1, ... (at most {MOST_HEADS}); copy it again")
    notes = Fields(_notes(folder), str(folder / NOTES))
    place = notes.integer("context_of_audio", least=0) if notes.has("context_of_audio") else None
    encoder = encoder_config(folder, shapes, "speech_input.")
    form = head_form(_notes(folder), len(heads), folder / NOTES)
    settings = SpeechLMConfig(config, len(heads), attention, encoder=encoder, context_of_audio=place, heads=form)
    model = SpeechLM.on_meta(settings)
    names = released_keys(model)
    own = {name: name for name in names.values() if name.startswith(_BESIDE)}
    plain = {key: name for key, name in names.items() if name not in own}
    return model, [(WeightFolder(folder), plain), *([] if beside is None else [(beside, own)])]


def save_backbone(
    model: SpeechLM,
    folder: Path | str,
    *,
    decode_pattern: Sequence[int] | None = None,
    first_code: int | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a plain folder of the backbone's layers, which transformers loads; the rest goes to a file of its own.

    LoRA adapters are merged. The published layout counts heads as layers: under a plain type, transformers would
    run them as such. `mctp.json` keeps what that type has no fields for.

    Args:
        decode_pattern: the runs of the decoding pattern, such as [1, 10, 4, 10].
        first_code: id of the first audio code.
        max_shard_bytes: size from which the weights are split into several files.
    """
    folder = Path(folder)
    parameters = late_parameters(model)
    beside = {name: tensor for name, tensor in parameters.items() if name.startswith(_BESIDE)}
    save_weights({name: tensor for name, tensor in parameters.items() if name not in beside}, folder, max_shard_bytes)
    if not (folder / INDEX).is_file():  # engines that read every safetensors file (vLLM) keep to what it lists
        write_json(
            folder / INDEX, {"metadata": {}, "weight_map": dict.fromkeys(parameters.keys() - beside.keys(), SINGLE)}
        )
    if beside:
        layout = {name: (tensor.dtype, tensor.shape) for name, tensor in beside.items()}
        write_tensors(folder / BESIDE, layout, (beside[name].read() for name in file_order(layout)))
    save_encoder_config(model, folder)
    fields = backbone_dict(model.config.backbone)
    family = family_of(model.config.backbone)
    own = {"architectures": [f"{family.classes}ForCausalLM"], "model_type": family.model_type}
    own |= {"torch_dtype": type_name(model)}
    write_json(folder / "config.json", fields | own)
    write_json(folder / "generation_config.json", generation_defaults(model))
    runs = None if decode_pattern is None else list(decode_pattern)
    notes = {"decode_pattern": runs, "first_code": first_code, "context_of_audio": model.config.context_of_audio}
    write_json(folder / NOTES, notes | {FORM: model.config.heads})


def backbone_notes(folder: Path | str) -> tuple[list[int] | None, int | None, int | None]:
    """What `save_backbone` left in `folder`: decoding pattern, ids of the first code and of `<|context_of_audio|>`.

    None stands for what is not there.
    """
    values = _notes(Path(folder))
    notes = Fields(values, str(Path(folder) / NOTES))
    pattern = list(DecodePattern.of(values["decode_pattern"]).runs) if notes.has("decode_pattern") else None
    first, context = (
        notes.integer(name, least=0) if notes.has(name) else None for name in ("first_code", "context_of_audio")
    )
    return pattern, first, context


def heads_beside(folder: Path) -> int:
    """Number of the heads that `save_backbone` left in `folder`; nothing is verified."""
    return len(_head_numbers(tensor_names(folder, BESIDE)))


def _head_numbers(names: Iterable[str]) -> set[int]:
    return {int(name.split(".")[1]) for name in names if re.match(r"heads\.\d+\.", name)}


def _notes(folder: Path) -> dict[str, Any]:
    return read_json_if_there(folder / NOTES)
