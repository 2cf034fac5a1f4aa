"""The identity of a run: the settings that change the mathematics, and no others.

Devices, engines, kernels, recomputation and paths may change when a run is resumed: results are equal up to rounding.
Such a change is recorded, since bits may differ from there on.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vita_audio_pl.models.families import FAMILIES
from vita_audio_pl.storage.checksums import sum_of_files

DECISIVE = (
    "stage",
    "model",
    "objective",
    "optim",
    "rendering",
    "seed",
    "text_audio_interval_ratio",
    "decode_pattern",
)
ROUNDING = {
    "model": ("attention", "activation_checkpointing", "checkpoint_every", "compile"),
    "objective": ("kernel", "chunk_rows"),
    "trainer": (
        "engine",
        "accelerator",
        "devices",
        "num_nodes",
        "precision",
        "rows_per_device",
        "threads",
    ),
}
"""Settings that change results only by rounding, by group."""
FORMAT = 3
"""Format of `identity.json`. Format 2 named the objective instead of its class; it is still read."""
_OBJECTIVES_OF_FORMAT_2 = {
    name: f"vita_audio_pl.models.objective_settings.{kind}"
    for name, kind in (
        ("every_head", "EveryHead"),
        ("audio_only", "AudioOnly"),
        ("served_slots", "ServedSlots"),
        ("distil", "Distil"),
    )
}
CHANGES = "changes.jsonl"
"""JSON lines in a stage's folder: which of `ROUNDING` changed at which step."""
_PLACES = {"model": ("name", "pretrained"), "objective": ("name",)}
"""Names and paths; the identity has the content of the files instead."""
_BEFORE_FAMILIES = {"family": "qwen2", "head_dim": None, "heads": "mctp"}
"""Defaults of `model` settings that older runs do not have in their identity."""


def decisive_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings (`config.component.plain`) that a stage's weights depend on.

    Settings without effect in the stage are omitted, so that runs which differ only in them share it: without heads
    the objective is not used; with a frozen backbone there is no loss to weigh the heads' against and
    no gradient to detach. A stage on pairs of answers has an objective of its own, and its labels weigh alike.
    """
    groups = [*DECISIVE, *(["encoder"] if settings["variant"]["speech_input"] == "encoder" else [])]
    decisive = {name: settings[name] for name in groups} | {"objective": _objective_today(settings["objective"])}
    for group, places in _PLACES.items():
        left_out = (*ROUNDING[group], *places)
        decisive[group] = {name: value for name, value in decisive[group].items() if name not in left_out}
    on_pairs = settings["stage"].get("beta", 0) > 0
    left_out = ("epochs", *(() if on_pairs else ("beta", "sft_weight")))  # steps are what counts
    decisive["stage"] = {name: value for name, value in decisive["stage"].items() if name not in left_out}
    for name, before in _BEFORE_FAMILIES.items():
        if decisive["model"].get(name) == before:
            decisive["model"].pop(name, None)
    lora = decisive["model"]["lora"]
    if not lora["only"]:  # as runs from before this setting have it
        decisive["model"]["lora"] = {name: value for name, value in lora.items() if name != "only"}
    if on_pairs:
        decisive["objective"] = {"detach_heads": decisive["objective"]["detach_heads"]}
        decisive["rendering"] = {"lead_in_codes": decisive["rendering"]["lead_in_codes"]}
    elif settings["stage"]["n_heads"] == 0:
        del decisive["objective"]
        decisive["model"].pop("heads", None)
    elif freezes_backbone(settings["stage"]["freeze"], settings):
        del decisive["objective"]["detach_heads"]
        decisive["objective"]["weight"] = 1.0
    return decisive


def upgrade_identity(held: Mapping[str, Any]) -> dict[str, Any]:
    """A flat identity in format 2, converted to the current one; others are returned unchanged."""
    if held.get("format") != 2:
        return dict(held)
    group = "objective."
    objective = {name.removeprefix(group): value for name, value in held.items() if name.startswith(group)}
    rest = {name: value for name, value in held.items() if not name.startswith(group)}
    today = flatten({"objective": _objective_today(objective)}) if objective else {}
    return {**rest, **{name: value for name, value in today.items() if name != "objective.name"}, "format": FORMAT}


def _objective_today(objective: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an objective in the current format; older ones have a name instead of a class."""
    if "_target_" in objective:
        return dict(objective)
    name, share = objective["name"], objective.get("kl_share")
    rest = {key: value for key, value in objective.items() if key != "kl_share"}
    if name == "distil":
        rest["kl_share"] = 0.5 if share is None else share
    return {"_target_": _OBJECTIVES_OF_FORMAT_2[name], **rest}


def freezes_backbone(patterns: Sequence[str], settings: Mapping[str, Any]) -> bool:
    """Whether the patterns of a stage freeze everything but the heads; freezing part of the backbone is not enough."""
    return all(any(re.search(pattern, name) for pattern in patterns) for name in _outside_heads(settings))


def _outside_heads(settings: Mapping[str, Any]) -> Iterator[str]:
    """Names of the parameters outside the heads, one per kind where kinds differ only by a number."""
    model = settings["model"]
    yield from ("model.embed_tokens.weight", "model.norm.weight")
    if not model["tie_word_embeddings"]:
        yield "lm_head.weight"
    names = FAMILIES[model.get("family", _BEFORE_FAMILIES["family"])].layer_parameters
    for layer in range(model["num_hidden_layers"]):
        yield from (f"model.layers.{layer}.{name}" for name in names)
    if model["lora"]["rank"]:
        yield "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    if settings["variant"]["speech_input"] == "encoder":
        yield "speech_input.audio_projection.0.weight"


def pretrained_identity(folder: str | None) -> str | None:
    """Fingerprint of the weights that a backbone starts from, independent of their path; None for random ones."""
    if folder is None:
        return None
    sums = sum_of_files(sorted(Path(folder).glob("*.safetensors")))
    held = sorted(json.dumps(one.to_json(), sort_keys=True) for one in sums.values())
    return hashlib.blake2b("".join(held).encode(), digest_size=8).hexdigest()


def record_changes(folder: Path, settings: Mapping[str, Any], step: int) -> list[str]:
    """Compare the settings of `ROUNDING` with the stage's previous ones and record the differences.

    Args:
        folder: the stage's folder, whose `config.yaml` is still the previous one.
        settings: settings of the resumed run.
        step: step that it resumes from.

    Returns:
        `name: old -> new` for each that changed.
    """
    path = folder / "config.yaml"
    if not step or not path.is_file():
        return []
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    changed = {
        f"{group}.{name}": [before[group][name], settings[group][name]]
        for group, names in ROUNDING.items()
        for name in names
        if name in before.get(group, {}) and before[group][name] != settings[group][name]
    }
    if changed:
        line = {"format": 1, "time": time.strftime("%Y-%m-%dT%H:%M:%S"), "step": step, "changed": changed}
        with (folder / CHANGES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return [f"{name}: {old} -> {new}" for name, (old, new) in changed.items()]


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings flattened to dotted keys."""
    if not isinstance(values, Mapping):
        return {prefix.rstrip("."): values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat
