"""Objectives against naive formulas written from full logits, and what a frozen backbone saves."""

import pytest
import torch
import torch.nn.functional as F

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.objectives import OBJECTIVES, EveryHead, build_objective
from vita_audio_pl.text.vocabulary import Vocabulary

WORDS = Vocabulary(n_text=20, n_codes=20, im_start=0, im_end=1, pad=2)
AUDIO = [1, WORDS.begin_of_audio, WORDS.end_of_audio, *range(WORDS.first_code, WORDS.used)]


def is_audio(batch, row, p):
    """Whether the token after `p` belongs to an audio span, said token by token."""
    target, here = batch.input_ids[row, p + 1].item(), batch.input_ids[row, p].item()
    return target in AUDIO[1:] or (target == WORDS.im_end and here == WORDS.end_of_audio)


def naive_rows(batch, predictor, rule):
    """(row, position) pairs a predictor is scored at, one by one."""
    for row in range(len(batch.input_ids)):
        for p in range(batch.input_ids.shape[1] - 1):
            same = batch.document_ids[row, p] == batch.document_ids[row, p + 1] >= 0
            if same and batch.labels[row, p + 1] >= 0 and batch.position_ids[row, p] >= predictor:
                if predictor == 0 or rule(batch, row, p, predictor):
                    yield row, p


RULES = {
    "every_head": lambda batch, row, p, predictor: True,
    "audio_only": lambda batch, row, p, predictor: is_audio(batch, row, p),
    "served_slots": lambda batch, row, p, predictor: batch.writers[row, p + 1] == predictor,
    "distil": lambda batch, row, p, predictor: True,
}


def naive_total(model, batch, name, weight, kl_share):
    """The objective from full logits in double precision."""
    logits = [logits.double() for logits in model.logits(batch)]
    kept = [(row, p) for row, p in (batch.document_ids >= 0).nonzero().tolist()]
    total, counts = 0.0, []
    for predictor, values in enumerate(logits):
        mine = [(row, p) for row, p in kept if batch.position_ids[row, p] >= predictor]
        scored = list(naive_rows(batch, predictor, RULES[name]))
        counts.append(len(scored))
        share = 1.0 if predictor == 0 else weight / model.n_heads
        for row, p in scored:
            z = values[0, mine.index((row, p))]
            target = batch.labels[row, p + 1]
            if predictor and name == "distil":
                goal = logits[0][0, kept.index((row, p))].softmax(-1).detach()
                own = z.softmax(-1)
                loss = kl_share * (goal * (goal / own).log()).sum() + (1 - kl_share) * 0.5 * (goal - own).abs().sum()
            elif predictor and name == "audio_only":
                loss = F.cross_entropy(z[AUDIO], torch.tensor(AUDIO.index(target)))
            else:
                loss = F.cross_entropy(z, target)
            label_weight = 1.0 if batch.loss_weights is None else batch.loss_weights[row, p + 1]
            total = total + share * label_weight * loss
    return total / batch.divisor, counts


@pytest.fixture
def audio_batch(pack):
    """Rows in which every kind of target occurs: text, codes, markers, `<|im_end|>` after text and after audio."""
    batch = pack([[13, 9], [17]], vocabulary=20, weighted=True)
    begin, end, code = WORDS.begin_of_audio, WORDS.end_of_audio, WORDS.first_code
    batch.input_ids[0, 4:12] = torch.tensor([5, begin, code, code + 7, code + 19, end, 1, 6])
    batch.input_ids[1, 6:12] = torch.tensor([8, 1, begin, code + 3, end, 1])
    batch.labels[batch.labels >= 0] = batch.input_ids[batch.labels >= 0]
    return batch


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_equals_its_formula(name, tied, tiny, audio_batch):
    model = tiny(tied=tied, vocab_size=WORDS.size)
    options = {"kl_share": 0.3} if name == "distil" else {}
    objective = build_objective(name, WORDS, weight=0.7, chunk_rows=8, **options)
    expected, counts = naive_total(model, audio_batch, name, 0.7, 0.3)
    losses = model(audio_batch, objective)
    assert losses.counts.tolist() == counts and min(counts) > 0
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)
    losses.total.backward()
    ours = {key: p.grad for key, p in model.named_parameters()}
    model.zero_grad()
    expected.backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(ours[key], parameter.grad, atol=1e-6, rtol=1e-4, msg=key)


def test_batches_cut_in_two_add_up_to_the_whole(tiny, pack):
    """The divisor is the global one, so the loss does not depend on how a step is cut into micro-batches or ranks."""
    model, whole = tiny(), pack([[13, 9], [17, 4]])
    halves = [pack([[13, 9], [17, 4]]), pack([[13, 9], [17, 4]])]
    for row, half in enumerate(halves):
        half.document_ids[1 - row] = -1
    total = model(whole, EveryHead()).total
    parts = [model(half, EveryHead()) for half in halves]
    torch.testing.assert_close(parts[0].total + parts[1].total, total)


def test_frozen_backbone_has_no_graph_no_loss_and_no_gradient(tiny, pack, monkeypatch):
    model, batch = tiny(), pack([[13, 9]])
    model.requires_grad_(False)
    model.heads.requires_grad_(True)
    assert not model.train_backbone
    inside = []
    model.model.register_forward_hook(lambda module, args, out: inside.append(out.last_hidden_state.requires_grad))
    scored, inner = [], EveryHead.losses

    def spy(self, lm_head, rows, *rest):
        scored.append([part.predictor for part in rows])
        return inner(self, lm_head, rows, *rest)

    monkeypatch.setattr(EveryHead, "losses", spy)
    losses = model(batch, EveryHead())
    losses.total.backward()
    assert inside == [False]
    assert scored == [[1, 2]]
    assert losses.counts[0] == 0 and losses.sums[0] == 0
    assert all((p.grad is not None) == name.startswith("heads.") for name, p in model.named_parameters())
    logged = model(batch, EveryHead(), score_frozen_backbone=True)
    assert logged.counts[0] == 18 and logged.sums[0] > 0 and torch.equal(logged.total, losses.total)


def test_detached_heads_send_nothing_into_the_backbone(tiny, pack):
    batch = pack([[13, 9]])
    gradients = []
    for weight in (0.0, 1.0):
        model = tiny(detach_heads=True)
        model(batch, EveryHead(weight=weight)).total.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    without, with_heads = gradients
    assert without["heads.0.proj.weight"] is None and with_heads["heads.0.proj.weight"].abs().sum() > 0
    for name in without:
        if name.startswith("model.layers") or "embed_tokens" in name:
            torch.testing.assert_close(without[name], with_heads[name])


def test_heads_without_weight_are_not_run(tiny, pack):
    model = tiny()
    model.heads[0].forward = None
    assert model(pack([[13, 9]]), EveryHead(weight=0.0)).total.item() > 0


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("every", {}, "must be one of every_head, audio_only"),
        ("every_head", {"kl_share": 0.5}, "does not take these options"),
        ("every_head", {"kernel": "triton"}, "must be one of torch, liger"),
        ("every_head", {"weight": -1.0}, "weight >= 0"),
        ("distil", {"kl_share": 1.5}, "must lie in"),
        ("distil", {"kl_share": "acceptances"}, "or be acceptance"),
    ],
)
def test_a_wrong_objective_is_one_sentence(name, options, sentence):
    with pytest.raises(UserError, match=sentence):
        build_objective(name, WORDS, **options)


def test_liger_is_never_replaced_silently(tiny, pack):
    with pytest.raises(UserError, match="CUDA"):
        tiny()(pack([[13, 9]]), EveryHead(kernel="liger"))
