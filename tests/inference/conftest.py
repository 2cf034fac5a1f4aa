"""Tiny models with random weights, and ways to decode them that share nothing with the decoder."""

import pytest
import torch
from transformers import Qwen2Config

from vita_audio_pl.inference import Runtime
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.models.heads import FORMS
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig

VOCABULARY = 97


@pytest.fixture(scope="session")
def tiny_model():
    """Builds a model of 2 layers; spread: of its weights, large enough that greedy answers vary."""

    def build(n_heads=3, seed=0, spread=0.4, vocabulary=VOCABULARY, tied=False, form="mctp"):
        torch.manual_seed(seed)
        backbone = Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=spread,
            tie_word_embeddings=tied,
        )
        model = SpeechLM(SpeechLMConfig(backbone, n_heads, heads=form)).eval().requires_grad_(False)
        with torch.no_grad():
            for head in model.heads:
                for parameter in head.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(0, spread)
        return model

    return build


@pytest.fixture(scope="session")
def agreeing_model(tiny_model):
    """A model whose heads often, but not always, draft what the backbone writes: nearly a table of followers."""

    @torch.no_grad()
    def build(n_heads=3, seed=0, noise=0.15):
        model = tiny_model(n_heads, seed, spread=noise)
        random = torch.Generator().manual_seed(seed)
        embeddings = torch.randn(VOCABULARY, 32, generator=random)
        followers = torch.randperm(VOCABULARY, generator=random)
        model.model.embed_tokens.weight.copy_(embeddings)
        model.lm_head.weight.zero_()
        model.lm_head.weight[followers] = embeddings
        for head in model.heads:
            head.proj.weight.normal_(0, noise)
            head.proj.weight[:, :32] += torch.eye(32)
        return model

    return build


@pytest.fixture(scope="session", params=FORMS)
def model(tiny_model, request):
    return tiny_model(form=request.param)


def drafting_always(runtime):
    """Heads cost nothing, so that every draft pays: what is drafted hangs on no machine."""
    runtime.costs = PassCosts(backbone=1.0, backbone_row=0.0, head=0.0, head_row=0.0)
    return runtime


@pytest.fixture(scope="session")
def runtime(model):
    return drafting_always(Runtime(model))


@pytest.fixture(scope="session")
def agreeing(agreeing_model):
    return agreeing_model()


@pytest.fixture(scope="session")
def agreeing_runtime(agreeing):
    return drafting_always(Runtime(agreeing))


@pytest.fixture
def prompts():
    """Random prompts of the given lengths."""

    def draw(*lengths, seed=0, vocabulary=VOCABULARY):
        random = torch.Generator().manual_seed(seed)
        return [torch.randint(0, vocabulary, (n,), generator=random).tolist() for n in lengths]

    return draw
