"""Parallel heads: each predicts from the backbone's state alone, and only folders that know them hold them."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.backbone import save_backbone
from vita_audio_pl.models.initialise import add_heads
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.lora import add_lora
from vita_audio_pl.models.objectives import EveryHead
from vita_audio_pl.models.released import save_released
from vita_audio_pl.training.run_folder.origin import dimensions


@pytest.mark.parametrize("detach", [False, True])
def test_heads_predict_from_the_backbones_state_alone_document_by_document(tiny, pack, detach):
    """From x at token q, `W (x + SiLU(R_k x))` is scored against token q + k + 2; nothing crosses documents."""
    lengths, n_heads = [13, 9, 2], 3
    model, batch = tiny(n_heads, form="parallel", detach_heads=detach), pack([lengths], n_heads=n_heads)
    losses = model(batch, EveryHead(weight=0.7, chunk_rows=4))
    expected, start = torch.zeros(()), 0
    for n in lengths:
        alone = replace(pack([[n]]), input_ids=F.pad(batch.input_ids[:, start : start + n], (0, 3)))
        labels = batch.labels[0, start : start + n]
        state = model.hidden_states(alone)[0][0]
        expected = expected + F.cross_entropy(model.lm_head(state[:-1]), labels[1:], reduction="sum")
        for k, head in enumerate(model.heads):
            x = (state.detach() if detach else state)[: max(0, n - k - 2)]
            logits = model.lm_head(x + F.silu(x @ head.residual.weight.T))
            expected = expected + 0.7 / n_heads * F.cross_entropy(logits, labels[k + 2 :], reduction="sum")
        start += n
    expected = expected / batch.divisor
    torch.testing.assert_close(losses.total, expected)
    losses.total.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_new_heads_are_the_identity_then_copies_and_the_forms_do_not_mix(tiny, pack):
    model, batch = tiny(0), pack([[9]])
    add_heads(model, 1, form="parallel")
    backbone, first = model.hidden_states(batch)
    assert torch.equal(first[0], backbone[0, :-1])
    torch.nn.init.normal_(model.heads[0].residual.weight)
    add_heads(model, 3)
    assert all(torch.equal(head.residual.weight, model.heads[0].residual.weight) for head in model.heads)
    with pytest.raises(UserError, match="heads are parallel, so they cannot go on as model.heads=mctp"):
        add_heads(model, 4, form="mctp")
    with pytest.raises(UserError, match="lora.only=true adapts layers in the heads, and parallel heads have none"):
        add_lora(model, 2, heads=True)


@pytest.mark.parametrize("save", [save_released, save_backbone])
def test_a_model_without_heads_has_no_form(tiny, tmp_path, save):
    model = tiny(0)
    add_heads(model, 0, form="parallel")
    assert model.config.heads == "mctp"
    model.config.heads = "parallel"  # as folders of earlier versions say
    save(model, tmp_path, decode_pattern=[1])
    back = load_model(tmp_path)
    assert back.config.heads == "mctp" and "heads" not in dimensions(tmp_path)
    add_heads(back, 1, form="parallel")
    assert back.config.heads == "parallel"


@pytest.mark.parametrize("save", [save_released, save_backbone])
def test_their_folders_come_back_bit_by_bit_and_say_what_they_are(tiny, tmp_path, save):
    model = tiny(3, form="parallel")
    save(model, tmp_path, decode_pattern=[1, 3])
    back = load_model(tmp_path)
    assert back.config.heads == "parallel" and back.n_heads == 3
    own, theirs = model.state_dict(), back.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    found = dimensions(tmp_path)
    assert (found["heads"], found["num_hidden_layers"]) == ("parallel", 2)
    if save is save_released:  # what knows MCTP alone does not take it for that
        with pytest.raises(ValueError, match="qwen2_mtp_parallel"):
            AutoConfig.from_pretrained(tmp_path)
        config = tmp_path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"head_form": "tree"}))
        with pytest.raises(UserError, match="head_form is 'tree'; it must be one of mctp, parallel"):
            load_model(tmp_path)
