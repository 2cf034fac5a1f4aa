"""Continuous speech in the model (the Plus variants): what the backbone hears, and what the heads do not."""

import pytest
import torch
from safetensors.torch import load_file

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.backbone import save_backbone
from vita_audio_pl.models.initialise import add_speech_input
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.objectives import EveryHead
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder

ENCODER = SenseVoiceConfig(width=16, heads=2, ffn_width=24, layers=2, text_layers=1, memory=3, n_mels=4, stack=3)
PLACE = 63


@pytest.fixture
def plus(tiny):
    """A tiny Plus model: heads detached, encoder frozen."""

    def build(**options):
        model = tiny(detach_heads=True, **options)
        torch.manual_seed(1)
        add_speech_input(model, SenseVoiceEncoder(ENCODER), PLACE)
        return model

    return build


@pytest.fixture
def spoken(pack):
    """Two documents: in the first, frames of two clips; none in the second."""
    batch = pack([[20, 9]])
    batch.input_ids[batch.input_ids == PLACE] = 0
    batch.input_ids[0, 2:9] = PLACE  # 3 + 4 states
    batch.input_ids[0, 11:17] = PLACE  # 2 + 4 states
    batch.labels[0, :17] = -100
    batch.clips = (torch.randn(3, 12), torch.randn(2, 12))
    return batch


def test_states_take_the_places_in_order_and_nothing_else_changes(plus, spoken):
    model = plus()
    embeds = model.model.embed_tokens(spoken.input_ids)
    heard = model.input_embeddings(spoken.input_ids.numpy(), embeds, spoken.clips)
    places = spoken.input_ids == PLACE
    assert torch.equal(heard[~places], embeds[~places])
    torch.testing.assert_close(heard[places], model.speech_input(spoken.clips))


def test_the_adapter_learns_from_the_backbone_only_and_the_encoder_not_at_all(plus, spoken):
    gradients = []
    for weight in (0.0, 1.0):
        model = plus()
        model(spoken, EveryHead(weight=weight)).total.backward()
        gradients.append(model.speech_input.audio_projection[1].weight.grad)
        assert all(p.grad is None for p in model.speech_input.encoder.parameters())
    assert gradients[0].abs().sum() > 0 and torch.allclose(*gradients)


def test_heads_see_the_plain_embeddings_of_the_places(plus, spoken):
    model, seen = plus(), []
    model.heads[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(spoken, EveryHead())
    plain = model.model.embed_tokens(spoken.input_ids[:, 1:20])  # head 0 begins at the second token
    torch.testing.assert_close(seen[0][:, :19], plain)


def test_with_the_llm_frozen_nothing_outside_the_heads_has_a_graph(plus, spoken):
    model = plus()
    model.requires_grad_(False)
    model.heads.requires_grad_(True)
    assert not model.train_backbone
    model(spoken, EveryHead()).total.backward()
    assert all((p.grad is not None) == name.startswith("heads.") for name, p in model.named_parameters())


def test_a_batch_without_audio_still_runs_the_adapter(plus, pack):
    """Ranks that shard or average gradients have to take part in the same ones."""
    model, batch = plus(), pack([[12]])
    batch.input_ids[batch.input_ids == PLACE] = 0
    model(batch, EveryHead()).total.backward()
    adapter = model.speech_input.audio_projection
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in adapter.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_published_keys_and_both_layouts_come_back_exactly(tied, plus, spoken, tmp_path):
    model = plus(tied=tied)
    save_released(model, tmp_path / "released")
    keys = load_file(tmp_path / "released/model.safetensors").keys()
    assert "model.audio_model.model.embed.weight" in keys and "model.audio_projection.1.weight" in keys
    save_backbone(model, tmp_path / "backbone")
    for again in (load_model(tmp_path / "released"), load_model(tmp_path / "backbone")):
        mine, theirs = model.state_dict(), again.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert torch.equal(again.logits(spoken)[2], model.logits(spoken)[2])


def test_places_that_do_not_fit_are_one_sentence(plus, tiny, spoken):
    spoken.clips = spoken.clips[:1]
    with pytest.raises(UserError, match="13 places for states of audio and the encoder made 7"):
        plus()(spoken, EveryHead())
    with pytest.raises(UserError, match="the model has none"):
        tiny()(spoken, EveryHead())
