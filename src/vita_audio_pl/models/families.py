"""Kinds of decoder that a backbone and its heads are made of: all that differs between Qwen2.5 and Qwen3 is said here.

A folder's family is that of the `model_type` in its `config.json`; a model's is that of its configuration. The modules are
transformers' own, imported when they are first asked for.
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
    """One kind of dense decoder with rotary positions and SwiGLU.

    Attributes:
        model_type: of a plain folder's `config.json`; also the name of transformers' module.
        classes: how the names of transformers' classes begin.
        models: that are published of it, for people.
        own_parameters: of a decoder layer, beside those that every family has.
        text_entries: of the published tokenizers.
        head_dim: size of a query or key where `config.json` does not say; None: the hidden size divided by the heads.
        flags: of `config.json` that the other families do not have; false where they are left out.
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
        """`model_type` of the published layout, with heads."""
        return f"{self.model_type}_mtp"

    @property
    def layer_parameters(self) -> tuple[str, ...]:
        """Names of a decoder layer's parameters."""
        return (*_EVERY_LAYER, *self.own_parameters)

    @property
    def norms_heads(self) -> bool:
        """Whether each query and key is normed before it is turned."""
        return "self_attn.q_norm.weight" in self.own_parameters

    @property
    def modeling(self) -> str:
        """Module of transformers that has its classes."""
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
    """Size of a query or key."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def head_norms(layer: DecoderLayer) -> "tuple[RMSNorm, RMSNorm] | None":
    """The norms of each query and of each key, weights `(head size,)`; None in families without them."""
    attention: Any = layer.self_attn
    return (attention.q_norm, attention.k_norm) if family_of(attention.config).norms_heads else None


def is_plain(fields: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a backbone as transformers has it."""
    return str(fields.get("model_type")) in FAMILIES


def plain_family(fields: Mapping[str, Any], path: Path) -> Family:
    """The family of a plain folder's `config.json`.

    Raises:
        UserError: it is of none.
    """
    if not is_plain(fields):
        raise _unknown(fields, path, FAMILIES)
    return FAMILIES[fields["model_type"]]


def released_family(fields: Mapping[str, Any], path: Path) -> Family:
    """The family of a published layout's `config.json`.

    Raises:
        UserError: it is of none.
    """
    for family in FAMILIES.values():
        if str(fields.get("model_type")).startswith(family.released_type):  # the Plus variants' has a suffix
            return family
    raise _unknown(fields, path, (family.released_type for family in FAMILIES.values()))


def family_of_folder(fields: Mapping[str, Any], path: Path) -> Family:
    """The family of the `config.json` of either layout.

    Raises:
        UserError: it is of none.
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
