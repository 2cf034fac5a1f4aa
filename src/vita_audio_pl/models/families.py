"""Backbone families: everything in which Qwen2.5 and Qwen3 differ is stated here.

A folder's family follows from `model_type` in its `config.json`, a model's from its configuration. The modules are
transformers' own, imported on first use.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from vita_audio_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm

    BackboneConfig: TypeAlias = Qwen2Config | Qwen3Config
    BackboneModel: TypeAlias = Qwen2Model | Qwen3Model
    DecoderLayer: TypeAlias = Qwen2DecoderLayer | Qwen3DecoderLayer
    RMSNorm: TypeAlias = Qwen2RMSNorm | Qwen3RMSNorm
else:
    BackboneConfig = BackboneModel = DecoderLayer = RMSNorm = Any

_EVERY_LAYER = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
)


@dataclass(frozen=True)
class Family:
    """One family of dense decoders with rotary positions and SwiGLU.

    Attributes:
        model_type: `model_type` in a plain folder's `config.json`; also the name of transformers' module.
        classes: prefix of the names of transformers' classes.
        models: published models of the family, for messages.
        own_parameters: parameters of a decoder layer that other families do not have.
        text_entries: size of the published tokenizers' vocabulary.
        head_dim: size of a query or key if `config.json` does not say; None = hidden size / number of heads.
        flags: fields of `config.json` that other families do not have; false if absent.
    """

    model_type: str
    classes: str
    models: str
    own_parameters: tuple[str, ...]
    text_entries: int
    head_dim: int | None = None
    flags: tuple[str, ...] = ()

    @property
    def released_type(self) -> str:
        """`model_type` of the published layout, which has heads."""
        return f"{self.model_type}_mtp"

    @property
    def layer_parameters(self) -> tuple[str, ...]:
        """Names of a decoder layer's parameters."""
        return (*_EVERY_LAYER, *self.own_parameters)

    @property
    def norms_heads(self) -> bool:
        """Whether queries and keys are normalised before the rotary embedding."""
        return "self_attn.q_norm.weight" in self.own_parameters

    @property
    def modeling(self) -> str:
        """transformers' module that defines its classes."""
        return f"transformers.models.{self.model_type}.modeling_{self.model_type}"

    def config(self, **fields: Any) -> BackboneConfig:
        return cast(BackboneConfig, self._made("Config", **fields))

    def model(self, config: BackboneConfig) -> BackboneModel:
        """Embeddings, decoder layers and final norm."""
        return cast(BackboneModel, self._made("Model", config))

    def causal_lm(self, config: BackboneConfig) -> "PreTrainedModel":
        return cast("PreTrainedModel", self._made("ForCausalLM", config))

    def layer(self, config: BackboneConfig, index: int) -> DecoderLayer:
        return cast(DecoderLayer, self._made("DecoderLayer", config, index))

    def norm(self, config: BackboneConfig) -> RMSNorm:
        """Of hidden states."""
        return cast(RMSNorm, self._made("RMSNorm", config.hidden_size, eps=config.rms_norm_eps))

    def _made(self, part: str, *arguments: Any, **fields: Any) -> Any:
        return getattr(import_module(self.modeling), f"{self.classes}{part}")(*arguments, **fields)


FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family("qwen2", "Qwen2", "Qwen2, Qwen2.5", tuple(f"self_attn.{name}_proj.bias" for name in "qkv"), 151_665),
        Family(
            "qwen3",
            "Qwen3",
            "Qwen3, dense",
            ("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
            151_669,
            head_dim=128,
            flags=("attention_bias",),
        ),
    )
}


def family_of(config: BackboneConfig) -> Family:
    """The family of a model's configuration."""
    return FAMILIES[config.model_type]


def head_size(config: BackboneConfig) -> int:
    """Size of a query or key, per attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def head_norms(layer: DecoderLayer) -> "tuple[RMSNorm, RMSNorm] | None":
    """The norms of queries and keys, weights `(head size,)` each; None in families without them."""
    attention: Any = layer.self_attn
    return (attention.q_norm, attention.k_norm) if family_of(attention.config).norms_heads else None


def is_plain(fields: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a plain transformers backbone."""
    return str(fields.get("model_type")) in FAMILIES


def plain_family(fields: Mapping[str, Any], path: Path) -> Family:
    """The family of a plain folder's `config.json`.

    Raises:
        UserError: no known family.
    """
    if not is_plain(fields):
        raise _unknown(fields, path, FAMILIES)
    return FAMILIES[fields["model_type"]]


def released_family(fields: Mapping[str, Any], path: Path) -> Family:
    """The family of a published layout's `config.json`.

    Raises:
        UserError: no known family.
    """
    for family in FAMILIES.values():
        if str(fields.get("model_type")).startswith(family.released_type):  # the Plus variants add a suffix
            return family
    raise _unknown(fields, path, (family.released_type for family in FAMILIES.values()))


def family_of_folder(fields: Mapping[str, Any], path: Path) -> Family:
    """The family of a `config.json` of either layout.

    Raises:
        UserError: no known family.
    """
    try:
        return plain_family(fields, path) if is_plain(fields) else released_family(fields, path)
    except UserError:
        raise _unknown(fields, path, (*FAMILIES, *(family.released_type for family in FAMILIES.values()))) from None


def _unknown(fields: Mapping[str, Any], path: Path, wanted: Iterable[str]) -> UserError:
    models = " and ".join(family.models for family in FAMILIES.values())
    return UserError(
        f"{path} says model_type '{str(fields.get('model_type'))[:40]}', and it has to be one of {', '.join(wanted)}: "
        f"backbones are {models}"
    )
