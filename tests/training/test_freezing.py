import pytest
import torch
from toy import VOCABULARY, toy_config

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.initialise import add_heads
from vita_audio_pl.training.stage.starting_model import starting_model
from vita_audio_pl.training.step.freezing import fingerprint, freeze
from vita_audio_pl.training.step.optimiser import parameter_groups

LLM = r"^(model|lm_head)\."


def model_with_heads(tmp_path, n_heads=2, *overrides):
    model = starting_model(toy_config(tmp_path, "stage=align", *overrides), VOCABULARY, None)
    add_heads(model, n_heads)
    return model


@pytest.mark.parametrize("tied", ["true", "false"])
def test_freezing_the_llm_leaves_the_heads_alone(tmp_path, tied):
    model = model_with_heads(tmp_path, 2, f"model.tie_word_embeddings={tied}")
    report = freeze(model, [LLM])
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"heads"}
    assert report.trained_parameters == sum(p.numel() for p in model.heads.parameters())
    assert report.frozen_parameters + report.trained_parameters == sum(p.numel() for p in model.parameters())


def test_heads_freeze_as_a_whole_or_one_by_one(tmp_path):
    model = model_with_heads(tmp_path)
    freeze(model, [r"^heads\.0\."])
    assert not any(p.requires_grad for p in model.heads[0].parameters())
    assert all(p.requires_grad for p in model.heads[1].parameters())
    freeze(model, [r"^heads\."])
    assert not any(p.requires_grad for p in model.heads.parameters())


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'\^mtp\.' matches no parameter; the model has model, lm_head, heads"):
        freeze(model_with_heads(tmp_path), ["^mtp."])
    with pytest.raises(UserError, match="nothing to train"):
        freeze(model_with_heads(tmp_path), ["."])


def test_parameter_groups_hold_rates_and_decay_and_nothing_frozen(tmp_path):
    model = model_with_heads(tmp_path)
    freeze(model, [r"^model\.embed_tokens"])
    groups = {group["name"]: group for group in parameter_groups(model, 1e-3, 10.0, 0.1)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "backbone": (1e-3, 0.1), "backbone_no_decay": (1e-3, 0.0), "heads": (1e-2, 0.1), "heads_no_decay": (1e-2, 0.0)
    }  # fmt: skip
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(p.dim() == 1 for name in groups if name.endswith("no_decay") for p in groups[name]["params"])


def test_a_fingerprint_sees_a_single_bit():
    value = torch.randn(30, 50)
    before = fingerprint(value)
    value.view(torch.int32)[3, 5] ^= 1
    assert fingerprint(value) != before
