"""The published layout for `transformers.AutoModelForCausalLM`, without remote code; registered by `import vita_audio_pl`.

`model.generate()` decodes with the backbone alone (Vanilla). `model.speech_lm()` has the same weights as a `SpeechLM`,
for `inference.runtime.Runtime`, which also decodes with the heads. Each backbone family has its own classes.
"""

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.families import FAMILIES, BackboneConfig, BackboneModel, Family
from vita_audio_pl.models.released import HEADS, released_key
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Modules
else:
    _Modules = object


class MTPConfig(Qwen2Config):
    """`config.json` of the published layout, whose `num_hidden_layers` includes the heads' layers."""

    model_type = FAMILIES["qwen2"].released_type
    num_nextn_predict_layers: int = 0


class Qwen3MTPConfig(Qwen3Config):
    """The same for Qwen3."""

    model_type = FAMILIES["qwen3"].released_type
    num_nextn_predict_layers: int = 0


class _WithHeads(_Modules):
    """Adds the heads' modules to one of transformers' causal language models; used as a mix-in.

    Raises:
        UserError: the configuration leaves no layer to the backbone, or the weights are quantised.
    """

    family: ClassVar[Family]

    def __init__(self, config: BackboneConfig):
        if getattr(config, "quantize", None):
            raise UserError(
                "transformers does not read weights that this package has quantised: use its own commands or load_speech_model, or "
                "export without quantize and let transformers quantise (TorchAoConfig)"
            )
        super().__init__(config)
        self.n_heads = int(getattr(config, HEADS, 0) or 0)
        if self.n_heads >= config.num_hidden_layers:
            raise UserError(f"{self.n_heads} heads among {config.num_hidden_layers} layers leave no backbone")
        # transformers runs and caches as many of `layers` as this configuration says
        backbone = copy(config)
        backbone.num_hidden_layers = config.num_hidden_layers - self.n_heads
        backbone.layer_types = (config.layer_types or [])[: backbone.num_hidden_layers]
        cast(Any, self.model).config = backbone
        self.mtp_projs = nn.ModuleList(
            nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False) for _ in range(self.n_heads)
        )
        self.mtp_embed_norms, self.mtp_hidden_norms = (
            nn.ModuleList(self.family.norm(config) for _ in range(self.n_heads)) for _ in range(2)
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def speech_lm(self, attention: str = "per_document") -> SpeechLM:
        """The `SpeechLM` that shares this object's parameters."""
        fields = cast(BackboneModel, self.model).config.to_dict()
        fields.pop("model_type", None)
        fields.pop(HEADS, None)
        config = SpeechLMConfig(self.family.config(**fields), self.n_heads, attention)
        model = SpeechLM.on_meta(config)
        own: dict[str, nn.Parameter] = dict(self.named_parameters(remove_duplicate=False))
        layers = config.backbone.num_hidden_layers
        for name, _ in list(model.named_parameters(remove_duplicate=False)):
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, own[released_key(name, layers)])
        return model.materialised(self.device).train(self.training)


class MTPForCausalLM(_WithHeads, Qwen2ForCausalLM):
    """The published checkpoints' modules under their names; the forward pass is the backbone's."""

    config_class, family = MTPConfig, FAMILIES["qwen2"]


class Qwen3MTPForCausalLM(_WithHeads, Qwen3ForCausalLM):
    """The same for Qwen3."""

    config_class, family = Qwen3MTPConfig, FAMILIES["qwen3"]


def register(*_: Any) -> None:
    """Register the classes with transformers; safe to call more than once."""
    for config, model in ((MTPConfig, MTPForCausalLM), (Qwen3MTPConfig, Qwen3MTPForCausalLM)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
