"""Recomputed and compiled blocks change nothing but time and memory; LoRA changes the backbone alone."""

import pytest
import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.blocks import blocks, checkpoint_activations, compile_blocks
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.lora import add_lora, merge_lora
from vita_audio_pl.models.objectives import EveryHead
from vita_audio_pl.models.released import save_released


def step(model, batch):
    model.zero_grad()
    total = model(batch, EveryHead()).total
    total.backward()
    return total.detach(), [p.grad for p in model.parameters()]


def count_calls(model):
    calls = []
    for block in blocks(model):
        inner = (block.layer if hasattr(block, "layer") else block).mlp
        inner.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("which, every, again", [("none", 1, 0), ("backbone", 1, 2), ("heads", 1, 2), ("all", 2, 2)])
def test_checkpointing_recomputes_the_chosen_blocks_with_the_same_gradients(which, every, again, tiny, pack):
    model, batch = tiny().train(), pack([[9, 5]])
    loss, gradients = step(model, batch)
    checkpoint_activations(model, which, every)
    calls = count_calls(model)
    new_loss, new_gradients = step(model, batch)
    assert torch.equal(loss, new_loss)
    assert all(torch.equal(old, new) for old, new in zip(gradients, new_gradients, strict=True))
    assert len(calls) == 4 + again


@pytest.mark.parametrize("which", ["none", "all"])
def test_compiled_blocks_give_the_same_loss_and_are_compiled_once_for_all_lengths(which, tiny, pack):
    model, batches = tiny(), [pack([lengths]) for lengths in ([9, 5], [30, 2, 7], [12], [6, 6, 6])]
    checkpoint_activations(model.train(), which)
    expected = [step(model, batch) for batch in batches]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile_blocks(model, backend=backend)
    for number, (batch, (loss, gradients)) in enumerate(zip(batches, expected, strict=True)):
        new_loss, new_gradients = step(model, batch)
        torch.testing.assert_close(new_loss, loss)
        for old, new in zip(gradients, new_gradients, strict=True):
            torch.testing.assert_close(new, old, atol=1e-6, rtol=1e-4)
        if number == 1:
            seen = len(graphs)
    assert len(graphs) == seen, "new lengths were compiled again"


def test_lora_trains_adapters_alone_and_is_merged_where_weights_are_written(tiny, pack, tmp_path):
    model, batch = tiny().eval(), pack([[9, 5]])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.model.embed_tokens.requires_grad_(False)
    add_lora(model, rank=2, targets=["q_proj", "down_proj"])
    assert model.train_backbone and model.lm_head.weight.requires_grad
    assert not model.model.embed_tokens.weight.requires_grad
    layers = {name for name, p in model.named_parameters() if name.startswith("model.layers") and p.requires_grad}
    assert len(layers) == 2 * 2 * 2 and all("lora_" in name for name in layers)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimiser.zero_grad()
        model(batch, EveryHead()).total.backward()
        optimiser.step()
    expected = model.logits(batch)
    save_released(model, tmp_path)
    for merged in (load_model(tmp_path), model):
        if merged is model:
            merge_lora(model)
        assert {name for name, _ in merged.named_parameters()} == before.keys()
        changed = {name for name, p in merged.named_parameters() if not torch.equal(p, before[name])}
        assert {name for name in changed if name.startswith("model.layers")} == {
            f"model.layers.{i}.{part}.weight" for i in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")
        }
        for one, other in zip(merged.logits(batch), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_wrong_choices_are_one_sentence(tiny):
    with pytest.raises(UserError, match="use one of none, backbone, heads, all"):
        checkpoint_activations(tiny(), "some")
    with pytest.raises(UserError, match="every 0-th"):
        checkpoint_activations(tiny(), "all", every=0)
    with pytest.raises(UserError, match="no linear layer of the backbone is called w1; known: down_proj"):
        add_lora(tiny(), rank=2, targets=["q_proj", "w1"])
    model = tiny()
    add_lora(model, rank=2)
    with pytest.raises(UserError, match="already"):
        add_lora(model, rank=2)
