"""How a model is run or adapted, as settings of a real stage."""

import pytest
import torch
from toy import VOCABULARY, toy_config

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.initialise import add_speech_input
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.training.stage.starting_model import starting_model
from vita_audio_pl.training.step.freezing import freeze


def weights(folder):
    return load_model(folder.root / "model").state_dict()


def test_checkpointing_and_attention_change_no_weight(trained):
    plain = weights(trained("align", "run_name=plain"))
    options = ["model.activation_checkpointing=all", "model.checkpoint_every=2", "model.attention=sdpa"]
    other = weights(trained("align", "run_name=other", *options))
    assert all(torch.allclose(plain[name], other[name], atol=1e-5) for name in plain)


def test_a_stage_with_lora_hands_over_merged_weights(trained):
    plain = weights(trained("align", "run_name=lora", "stage.steps=1"))
    adapted = weights(trained("sft", "run_name=lora", "variant.parents.sft=[align]", "model.lora.rank=2"))
    assert plain.keys() <= adapted.keys() and not any("lora" in name for name in adapted)
    changed = {name for name in plain if not torch.equal(plain[name], adapted[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in changed and "lm_head.weight" in changed
    assert not any("layernorm" in name or name.endswith(".bias") for name in changed)


def test_lora_trains_adapters_embeddings_and_heads_but_no_layer(tmp_path):
    model = starting_model(toy_config(tmp_path, "stage=sft", "model.lora.rank=2"), VOCABULARY, None)
    freeze(model, [])
    layers = [name for name, p in model.named_parameters() if name.startswith("model.layers") and p.requires_grad]
    assert layers and all(".lora_" in name for name in layers)
    assert model.lm_head.weight.requires_grad and all(p.requires_grad for p in model.heads.parameters())


def test_the_adapter_trains_with_the_llm_and_the_encoder_never(tmp_path):
    sizes = SenseVoiceConfig(width=8, heads=2, ffn_width=8, layers=1, text_layers=1, memory=3, n_mels=4, stack=2)
    trained = []
    for stage in ("align", "mtp10"):
        config = toy_config(tmp_path, f"stage={stage}")
        model = starting_model(config, VOCABULARY, None)
        add_speech_input(model, SenseVoiceEncoder(sizes), context_of_audio=5)
        freeze(model, config.stage.freeze)
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        trained.append({".".join(name.split(".")[:2]) for name in names if name.startswith("speech_input")})
    assert trained == [{"speech_input.audio_projection"}, set()]


def test_wrong_options_are_refused_before_the_first_step(tmp_path):
    for override, sentence in (
        ("model.attention=fast", "choose one of per_document"),
        ("model.activation_checkpointing=some", "choose one of none, backbone"),
        ("model.compile=some", "choose one of none, backbone"),
        ("model.lora.rank=-1", "must be at least 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            starting_model(toy_config(tmp_path, "stage=align", override), VOCABULARY, None)
