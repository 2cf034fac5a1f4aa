"""The heads as vLLM's drafts: what the draft classes compute, without vLLM."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.backbone import BESIDE
from vita_audio_pl.models.vllm_export import save_vllm
from vita_audio_pl.vllm_plugin.chain import DraftConfig, DraftHead, HeadChain


class PlainLayer(Qwen2DecoderLayer):
    """transformers' layer as vLLM calls its own, over one document."""

    def __init__(self, config):
        super().__init__(config, 0)
        self.rotary = Qwen2RotaryEmbedding(config)

    def forward(self, positions, hidden_states, residual):
        assert residual is None
        n = len(positions)
        mask = torch.full((1, 1, n, n), float("-inf")).triu(1)
        angles = self.rotary(hidden_states[None], positions[None])
        output = super().forward(hidden_states[None], attention_mask=mask, position_embeddings=angles)
        return torch.zeros_like(hidden_states), output[0]


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_head_drafts_what_it_predicts(tiny, pack, tmp_path, tied):
    """Rows as vLLM has them: at place P, head k reads token P + k + 1 and its predecessor's state at P."""
    n_heads, length = 10, 24
    model = tiny(n_heads=n_heads, tied=tied, spread=0.3)
    save_vllm(model, tmp_path / "out")
    config = DraftConfig.from_pretrained(tmp_path / "out/heads")
    assert (config.num_nextn_predict_layers, config.n_predict, config.num_hidden_layers) == (n_heads, n_heads, 2)
    config._attn_implementation = "eager"
    norm = partial(Qwen2RMSNorm, config.hidden_size, config.rms_norm_eps)
    heads = [DraftHead(config.hidden_size, norm, PlainLayer(config)) for _ in range(config.num_nextn_predict_layers)]
    chain = HeadChain(heads, norm())
    files = load_file(tmp_path / "out" / BESIDE) | load_file(tmp_path / "out/heads/model.safetensors")
    chain.load_state_dict({name.removeprefix("model."): weight for name, weight in files.items()}, strict=True)
    chain.embed_tokens = model.model.embed_tokens

    batch = pack([[length]], n_heads=n_heads)
    ids, states = batch.input_ids[0, :length], [state[0] for state in model.hidden_states(batch)]
    assert len(states) == n_heads + 1
    hidden = states[0]
    for k in range(n_heads):
        rows = length - k - 1
        hidden = chain(ids[k + 1 :], torch.arange(rows), hidden[:rows], k)
        torch.testing.assert_close(hidden, states[k + 1], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(hidden[1:], states[k][1:rows], atol=0.1)  # the heads are not alike


def test_a_model_without_heads_has_nothing_to_draft_with(tiny, tmp_path):
    with pytest.raises(UserError, match="format=backbone"):
        save_vllm(tiny(n_heads=0), tmp_path / "out")
    assert not (tmp_path / "out").exists()
