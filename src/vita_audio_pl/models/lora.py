"""Low-rank adapters on the backbone (LoRA, arXiv 2106.09685), by way of peft."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.heads import FORMS
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.models.tensor_file import LateTensor

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear

BESIDE_ADAPTERS = r"^model\.layers\.(?!.*\.lora_)"
"""Names of the parameters that LoRA leaves frozen: those of the backbone's layers that are no adapters."""

NO_ADAPTER = r"^(?!.*\.lora_)"
"""Names of the parameters that are no adapters."""

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(
    model: SpeechLM,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = DEFAULT_TARGETS,
    heads: bool = False,
) -> None:
    """Puts adapters beside linear layers of the backbone, in place; what they adapt stops training.

    Without `heads`, embeddings, vocabulary layer and heads stay as they are. `save_released` and `save_backbone` write merged weights.

    Args:
        rank: inner size of an adapter; alpha: adapters are scaled by `alpha / rank`, None for `alpha = 2 * rank`;
        targets: last parts of the names of the layers; heads: adapt those of the heads, too.

    Raises:
        UserError: peft is not installed, the model has adapters, a target matches no layer, or the heads have no such layers.
    """
    if heads and model.n_heads and not FORMS[model.config.heads].chained:
        raise UserError(
            f"model.lora.only=true adapts layers in the heads, and {model.config.heads} heads have none; leave it out"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("LoRA needs the package peft; install vita-audio-pl[lora]") from None
    if rank < 1:
        raise UserError(f"a LoRA rank of {rank} is not possible; use 1 or more")
    if next(adapted_layers(model), None) is not None:
        raise UserError("the model has LoRA adapters already; merge them first")
    names = {name.rpartition(".")[2] for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(targets) - names)
    if unknown:
        known = ", ".join(sorted(names))
        raise UserError(f"no linear layer of the backbone is called {', '.join(unknown)}; known: {known}")
    outside = {name: p.requires_grad for name, p in model.named_parameters() if ".layers." not in f".{name}"}
    settings = LoraConfig(
        r=rank,
        lora_alpha=cast(int, 2 * rank if alpha is None else alpha),  # declared whole, and used as any number
        lora_dropout=dropout,
        target_modules=list(targets),
    )
    inject_adapter_in_model(settings, model.model)
    if heads and model.n_heads:
        inject_adapter_in_model(settings, model.heads)
        outside = {name: requires_grad for name, requires_grad in outside.items() if not name.startswith("heads.")}
    for name, requires_grad in outside.items():  # peft freezes all that is no adapter
        model.get_parameter(name).requires_grad_(requires_grad)


def merge_lora(model: SpeechLM) -> None:
    """Adds the adapters to the weights beside them and takes them out, in place; without adapters it does nothing."""
    for name, layer in list(adapted_layers(model)):
        layer.merge()
        owner, _, attribute = name.rpartition(".")
        plain = layer.get_base_layer()
        plain.requires_grad_(True)
        setattr(model.get_submodule(owner), attribute, plain)


def adapted_layers(model: SpeechLM) -> Iterator[tuple[str, "LoraLinear"]]:
    """Name and module of every layer with an adapter."""
    return ((name, cast("LoraLinear", module)) for name, module in model.named_modules() if hasattr(module, "lora_A"))


def late_parameters(model: SpeechLM, weights: Mapping[str, LateTensor] | None = None) -> dict[str, LateTensor]:
    """Parameters by name as a model without adapters has them, each merged when it is read; the model stays as it is.

    Args:
        weights: parameters by name where `model`, which may be on the meta device, does not hold them.
    """
    if weights is None:
        weights = {name: LateTensor.of(parameter) for name, parameter in model.named_parameters()}
    adapted = dict(adapted_layers(model))
    found = {}
    for name, value in weights.items():
        owner, inside, attribute = name.partition(".base_layer.")
        if inside and attribute == "weight":
            merge = partial(_merged, value, owner, adapted[owner], weights)
            found[f"{owner}.{attribute}"] = LateTensor(value.dtype, value.shape, merge)
        elif ".lora_" not in name:
            found[f"{owner}.{attribute}" if inside else name] = value
    return found


def merged_parameters(model: SpeechLM) -> dict[str, Tensor]:
    """As `late_parameters`, read."""
    return {name: parameter.read() for name, parameter in late_parameters(model).items()}


@torch.no_grad()
def _merged(value: LateTensor, owner: str, layer: "LoraLinear", weights: Mapping[str, LateTensor]) -> Tensor:
    whole = value.read()
    for adapter in layer.active_adapters:
        down, up = (weights[f"{owner}.lora_{part}.{adapter}.weight"].read().float() for part in "AB")
        whole = whole + (up @ down * layer.scaling[adapter]).to(whole.dtype)
    return whole
