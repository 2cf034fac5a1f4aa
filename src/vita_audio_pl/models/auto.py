"""The published layout for `transformers.AutoModelForCausalLM`, without remote code; registered by `import vita_audio_pl`.

`model.generate()` writes the backbone's tokens (Vanilla). `model.speech_lm()` is the same weights as this package's model,
for its decoder, which lets the heads write (`inference.runtime.Runtime`).
"""

from copy import copy
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.released import HEADS, MODEL_TYPE, released_key
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig


class MTPConfig(Qwen2Config):
    """`config.json` of the published layout: `num_hidden_layers` counts the heads' layers, too."""

    model_type = MODEL_TYPE
    num_nextn_predict_layers: int = 0


class MTPForCausalLM(Qwen2ForCausalLM):
    """The published checkpoints' modules under their names; the forward pass is the backbone's.

    Raises:
        UserError: the configuration leaves no layer to the backbone.
    """

    config_class = MTPConfig

    def __init__(self, config: MTPConfig):
        super().__init__(config)
        self.n_heads = int(getattr(config, HEADS, 0) or 0)
        if self.n_heads >= config.num_hidden_layers:
            raise UserError(f"{self.n_heads} heads among {config.num_hidden_layers} layers leave no backbone")
        # transformers runs as many of `layers` as this configuration says, and makes caches for them
        backbone = copy(config)
        backbone.num_hidden_layers = config.num_hidden_layers - self.n_heads
        backbone.layer_types = (config.layer_types or [])[: backbone.num_hidden_layers]
        self.model.config = backbone
        width, eps = config.hidden_size, config.rms_norm_eps
        self.mtp_projs = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(self.n_heads))
        self.mtp_embed_norms = nn.ModuleList(Qwen2RMSNorm(width, eps) for _ in range(self.n_heads))
        self.mtp_hidden_norms = nn.ModuleList(Qwen2RMSNorm(width, eps) for _ in range(self.n_heads))
        self.post_init()  # type: ignore[no-untyped-call]

    def speech_lm(self, attention: str = "per_document") -> SpeechLM:
        """The model with its heads; the parameters are this object's."""
        fields = self.model.config.to_dict()
        fields.pop("model_type", None)
        fields.pop(HEADS, None)
        config = SpeechLMConfig(Qwen2Config(**fields), self.n_heads, attention)
        model = SpeechLM.on_meta(config)
        own: dict[str, nn.Parameter] = dict(self.named_parameters(remove_duplicate=False))
        layers = config.backbone.num_hidden_layers
        for name, _ in list(model.named_parameters(remove_duplicate=False)):
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, own[released_key(name, layers)])
        return model.materialised(self.lm_head.weight.device).train(self.training)


def register(*_: Any) -> None:
    """Make the classes known to transformers; may be called again."""
    AutoConfig.register(MODEL_TYPE, MTPConfig, exist_ok=True)
    AutoModelForCausalLM.register(MTPConfig, MTPForCausalLM, exist_ok=True)
