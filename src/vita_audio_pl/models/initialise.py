"""Initial weights of a stage: new heads, an audio encoder, a larger vocabulary."""

import torch
from torch import Tensor, nn

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.heads import FORMS
from vita_audio_pl.models.sensevoice import SenseVoiceEncoder
from vita_audio_pl.models.speech_input import SpeechInput
from vita_audio_pl.models.speech_lm import SpeechLM

_RESIZE_SPREAD = 1e-9


def end_answers_with(model: SpeechLM, token: int) -> None:
    """Let `generate()` of transformers and engines end an answer at `token`, beside the ends that the weights came with."""
    backbone = model.config.backbone
    ends = backbone.eos_token_id
    known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if token not in known:
        backbone.eos_token_id = [*known, token] if known else token


def add_heads(model: SpeechLM, n_heads: int, generator: torch.Generator | None = None, form: str | None = None) -> None:
    """Add heads until `model` has `n_heads`, in place (VITA-Audio, section 3.3).

    A first MCTP head copies the backbone's last decoder layer, draws its projection from N(0, initializer_range) and sets
    its norms to 1; a first parallel head is the identity. Every further head is a copy of the one before it: one trained head becomes ten copies of that
    head, and a model without heads gets ten equal ones.

    Args:
        form: of the heads; None for the model's own.

    Raises:
        UserError: the model has more heads already, or heads of another form.
    """
    if form is not None and form != model.config.heads:
        if model.n_heads:
            raise UserError(f"the model's heads are {model.config.heads}, so they cannot go on as model.heads={form}")
        if n_heads:  # a model without heads has no form
            model.config.heads = form
    if n_heads < model.n_heads:
        raise UserError(f"the model has {model.n_heads} heads and {n_heads} are asked for; heads can only be added")
    backbone = model.config.backbone
    for k in range(model.n_heads, n_heads):
        source = model.heads[k - 1].state_dict() if k else _first_head(model, generator)
        with torch.device("meta"):
            block = FORMS[model.config.heads](backbone, k)
        block.load_state_dict({name: tensor.detach().clone() for name, tensor in source.items()}, assign=True)
        model.heads.append(block.train(model.training).requires_grad_(True))
    model.config.n_heads = n_heads


def _first_head(model: SpeechLM, generator: torch.Generator | None) -> dict[str, Tensor]:
    hidden, spread = model.config.backbone.hidden_size, model.config.backbone.initializer_range
    like = model.model.norm.weight
    if model.config.heads == "parallel":
        return {"residual.weight": like.new_zeros(hidden, hidden)}
    projection = torch.empty(hidden, 2 * hidden).normal_(std=spread, generator=generator)
    return {
        "embed_norm.weight": torch.ones_like(like),
        "hidden_norm.weight": torch.ones_like(like),
        "proj.weight": projection.to(like),
        **{f"layer.{name}": tensor for name, tensor in model.model.layers[-1].state_dict().items()},
    }


def add_speech_input(model: SpeechLM, encoder: SenseVoiceEncoder, context_of_audio: int) -> None:
    """Add `encoder`, frozen, and a new adapter to `model`, in place (VITA-Audio-Plus).

    Args:
        context_of_audio: id of the placeholder token of one encoder state.
    """
    like = model.model.norm.weight
    model.speech_input = SpeechInput(encoder.requires_grad_(False), model.config.backbone.hidden_size).to(like)
    model.speech_input.train(model.training)
    model.config.encoder, model.config.context_of_audio = encoder.config, context_of_audio


def resize_vocabulary(model: SpeechLM, size: int, generator: torch.Generator | None = None) -> None:
    """Resize embeddings and vocabulary layer to `size` rows, in place.

    Existing rows stay: new tokens use the untrained rows of a checkpoint past its tokenizer's end. Additional rows
    are drawn around the mean of the old ones with their covariance times 1e-9, as transformers' `mean_resizing` does.
    """
    tied = model.config.backbone.tie_word_embeddings
    for layer in (model.model.embed_tokens, *(() if tied else (model.lm_head,))):
        layer.weight = nn.Parameter(resized(layer.weight, size, generator), requires_grad=layer.weight.requires_grad)
    model.apply_ties()
    model.model.embed_tokens.num_embeddings = model.lm_head.out_features = size
    model.config.backbone.vocab_size = model.model.vocab_size = size


@torch.no_grad()
def resized(weight: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """`weight` resized to `size` rows, see `resize_vocabulary`."""
    added = size - len(weight)
    if added <= 0:
        return weight[:size].clone()
    mean = weight.mean(dim=0, dtype=torch.float32)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=weight.device)
    for rows in weight.split(16384):  # a whole float32 copy of a large matrix would double its memory
        centred = rows.float() - mean
        covariance += centred.t() @ centred
    factor, failed = torch.linalg.cholesky_ex(covariance.mul_(_RESIZE_SPREAD / len(weight)))
    new = mean.expand(added, -1)
    if not failed.item():  # with fewer rows than columns the covariance is singular; then the mean alone is used
        noise = torch.randn(added, len(mean), generator=generator).to(weight.device)
        new = new + noise @ factor.t().float()
    return torch.cat((weight, new.to(weight.dtype)))
