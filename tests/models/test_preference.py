"""The objective on pairs of answers against DPO's formula, written from full logits."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.preference import Preference
from vita_audio_pl.packed import PackedBatch

ROWS = [[13, 9, 12, 15], [17, 11]]  # three pairs


def naive_log_p(model, batch):
    """Log-probability of every document: of each labelled token under its writer; and how many tokens that is."""
    logits = [logits[0].double() for logits in model.logits(batch)]
    rows = [
        [(row, p) for row, p in (batch.document_ids >= 0).nonzero().tolist() if batch.position_ids[row, p] >= k]
        for k in range(len(logits))
    ]
    sums, counts = {}, {}
    for row, p in (batch.labels >= 0).nonzero().tolist():
        writer, document = int(batch.writers[row, p]), (row, int(batch.document_ids[row, p]))
        if batch.position_ids[row, p] - 1 >= writer:  # head k has no row before position k
            z = logits[writer][rows[writer].index((row, p - 1))]
            sums[document] = sums.get(document, 0.0) + z.log_softmax(-1)[batch.labels[row, p]]
            counts[document] = counts.get(document, 0) + 1
    order = sorted(sums)
    return torch.stack([sums[document] for document in order]), torch.tensor([counts[document] for document in order])


def naive_loss(policy, reference, beta, sft_weight, counts, pairs):
    """TRL's sigmoid loss, and RPO's term beside it."""
    chosen, rejected = policy[::2], policy[1::2]
    logits = (chosen - rejected) - (reference[:, 0] - reference[:, 1])
    return (-F.logsigmoid(beta * logits) - sft_weight * chosen / counts[::2]).sum() / pairs


@pytest.fixture
def batch(pack):
    found = pack(ROWS)
    reference = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 - 40
    return replace(found, divisor=3.0, reference=reference)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("beta", "sft_weight"), [(0.1, 0.0), (0.5, 0.3)])
def test_loss_and_gradients_are_those_of_the_formula(beta, sft_weight, tied, tiny, batch):
    model = tiny(tied=tied)
    found = model(batch, Preference(beta, sft_weight, chunk_rows=7))
    found.total.backward()
    mine = gradients(model)
    model.zero_grad()
    policy, counts = naive_log_p(model, batch)
    expected = naive_loss(policy, batch.reference, beta, sft_weight, counts, 3)
    expected.backward()

    torch.testing.assert_close(found.total.double(), expected, rtol=1e-5, atol=1e-6)
    theirs = gradients(model)
    assert mine.keys() == theirs.keys() and any(value.abs().max() > 1e-3 for value in theirs.values())
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()), msg=name)
    assert found.pairs.shape == (3, 4) and not found.pairs.requires_grad
    torch.testing.assert_close(found.pairs[:, :2], policy.detach().view(3, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        found.pairs[:, 2:], beta * (policy.detach().view(3, 2) - batch.reference), rtol=1e-4, atol=1e-4
    )
    with torch.no_grad():
        torch.testing.assert_close(model(batch, Preference(beta, sft_weight)).total, found.total.detach())


def rows_of(batch: PackedBatch, rows: slice, pairs: slice) -> PackedBatch:
    tensors = {
        name: value[rows]
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor) and name != "reference"
    }
    return replace(batch, **tensors, names=batch.names[rows], reference=batch.reference[pairs])


def test_gradients_of_the_parts_of_a_step_add_up(tiny, batch):
    """Accumulation, and ranks, each of which has some of the rows; one has none."""
    model, objective = tiny(), Preference(0.3, 0.1)
    whole = model(batch, objective)
    whole.total.backward()
    expected = gradients(model)
    model.zero_grad()
    empty = rows_of(batch, slice(0, 1), slice(0, 0))
    empty = replace(
        empty, document_ids=torch.full_like(empty.document_ids, -1), labels=torch.full_like(empty.labels, -100)
    )
    parts = [rows_of(batch, slice(0, 1), slice(0, 2)), rows_of(batch, slice(1, 2), slice(2, 3)), empty]
    total = torch.zeros(())
    for part in parts:
        losses = model(part, objective)
        losses.total.backward()
        total += losses.total.detach()
    torch.testing.assert_close(total, whole.total.detach())
    for name, value in gradients(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_pair_that_cannot_be_compared_teaches_nothing(tiny, batch):
    model = tiny()
    unknown = batch.reference.clone()
    unknown[1] = torch.nan
    losses = model(replace(batch, reference=unknown), Preference(0.2, 0.1))
    known = torch.where(batch.document_ids // 2 == 1, -100, batch.labels)  # the second pair is the first row's last
    expected = model(replace(batch, labels=known), Preference(0.2, 0.1))
    torch.testing.assert_close(losses.total, expected.total)
    losses.total.backward()
    mine = gradients(model)
    model.zero_grad()
    expected.total.backward()
    for name, value in gradients(model).items():
        torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert losses.pairs[:, 2].isnan().tolist() == expected.pairs[:, 2].isnan().tolist() == [False, True, False]


def test_it_does_not_train_without_a_reference(tiny, batch):
    model, without = tiny(), replace(batch, reference=None)
    with pytest.raises(UserError, match="needs the reference's log-probabilities"):
        model(without, Preference(0.1))
    with torch.no_grad():
        found = model(without, Preference(0.1)).pairs
    assert found[:, :2].isfinite().all() and found[:, 2:].isnan().all()


def test_a_frozen_backbone_gives_the_same_gradients_to_the_heads(tiny, batch):
    """What it writes is as likely as before, so that leaving it out changes no difference."""
    model, objective = tiny(), Preference(0.4)
    with torch.no_grad():
        reference = model(batch, objective).pairs[:, :2]
    heads = {name for name, _ in model.named_parameters() if name.startswith("heads.")}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (
                0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * (name in heads)
            )
    model(replace(batch, reference=reference), objective).total.backward()
    expected = gradients(model)
    model.zero_grad()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in heads)
    with torch.no_grad():
        alone = tiny()
        for name, parameter in alone.named_parameters():
            parameter.requires_grad_(name in heads)
        reference = alone(batch, objective).pairs[:, :2]
    model(replace(batch, reference=reference), objective).total.backward()
    for name in heads:
        torch.testing.assert_close(
            dict(model.named_parameters())[name].grad, expected[name], rtol=1e-4, atol=1e-6, msg=name
        )
