"""The draft models that vLLM makes and runs; vLLM itself is imported when one is made."""

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vita_audio_pl.models.backbone import BESIDE
from vita_audio_pl.models.vllm_export import FINAL_NORM
from vita_audio_pl.vllm_plugin.chain import DraftHead, HeadChain

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_logger = logging.getLogger(f"vllm.{__name__}")  # below a logger that vLLM prints
_MERGED = {
    ".q_proj": (".qkv_proj", "q"),
    ".k_proj": (".qkv_proj", "k"),
    ".v_proj": (".qkv_proj", "v"),
    ".gate_proj": (".gate_up_proj", 0),
    ".up_proj": (".gate_up_proj", 1),
}
"""Matrices that vLLM multiplies as one: part of a file's name -> part of the parameter's name, and which piece it is."""


class MCTPHeads(nn.Module):
    """The heads, for `{"method": "mtp", "model": "FOLDER/heads"}`; embeddings and vocabulary layer are the backbone's.

    There are as many heads as tokens are drafted: those that would not be run take no memory, nor caches.
    """

    def __init__(self, *, vllm_config: "VllmConfig", prefix: str = ""):
        from vllm.model_executor.layers.layernorm import RMSNorm
        from vllm.model_executor.layers.logits_processor import LogitsProcessor
        from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

        super().__init__()
        speculative = vllm_config.speculative_config
        assert speculative is not None
        n_drafts = speculative.num_speculative_tokens
        self.config = config = speculative.draft_model_config.hf_config
        distinct = 1 if speculative.method == "eagle" else config.num_nextn_predict_layers
        if n_drafts > 1 and (distinct == 1 or not vllm_config.use_v2_model_runner):
            _logger.warning(
                "Head 0 drafts all %d tokens: distinct heads need the method mtp and Model Runner V2 (a GPU with Triton). "
                'The answers stay right; "num_speculative_tokens": 1 is faster.',
                n_drafts,
            )
        norm = partial(RMSNorm, config.hidden_size, eps=config.rms_norm_eps)
        layer = partial(_layer_class(config.backbone_type), config, vllm_config.cache_config, vllm_config.quant_config)
        self.model = HeadChain(
            [
                # caches are told apart by the one number in a layer's name
                DraftHead(config.hidden_size, norm, layer(prefix=f"heads.{config.num_hidden_layers + k}.layer"))
                for k in range(min(distinct, n_drafts))
            ],
            norm(),
        )
        self.logits_processor = LogitsProcessor(config.vocab_size)
        backbone = str(Path(speculative.draft_model_config.model).parent)
        self.secondary_weights = [DefaultModelLoader.Source(backbone, None, allow_patterns_overrides=[BESIDE])]

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Embeddings (N, H) of ids (N,)."""
        embeddings: Tensor = self.model.embed_tokens(input_ids)
        return embeddings

    def forward(
        self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor, spec_step_idx: int = 0, **_: Any
    ) -> Any:
        """Normed states (N, H) of head `spec_step_idx`; what it is given is described in `HeadChain`."""
        return self.model(input_ids, positions, hidden_states, spec_step_idx)

    def compute_logits(self, hidden_states: Tensor, spec_step_idx: int = 0) -> Tensor | None:
        """Logits (N, vocabulary); all heads share the backbone's vocabulary layer."""
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Takes the heads and the final norm out of `weights`; an encoder that lies beside them is left."""
        from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

        def own() -> Iterator[tuple[str, Tensor]]:
            for name, weight in weights:
                if name == FINAL_NORM:
                    yield name, weight
                elif name.startswith("heads.") and int(name.split(".")[1]) < len(self.model.heads):
                    yield f"model.{name}", weight

        names = WeightsMapper(orig_to_new_stacked=_MERGED)
        loaded: set[str] = AutoWeightsLoader(self).load_weights(own(), mapper=names)
        return loaded


class EagleMCTPHeads(MCTPHeads):
    """Head 0 alone, for `{"method": "eagle", "model": "FOLDER/heads"}`, which wants a pair of states."""

    def forward(
        self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor, spec_step_idx: int = 0, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """The same states twice: for logits, and for a next token."""
        output = self.model(input_ids, positions, hidden_states, 0)
        return output, output


def _layer_class(backbone_type: str) -> Any:
    from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
    from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer

    return {"qwen2": Qwen2DecoderLayer, "qwen3": Qwen3DecoderLayer}[backbone_type]
