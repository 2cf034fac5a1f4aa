"""Documents packed in one row never see each other: in no attention kernel, in no head, in no label."""

import itertools

import pytest
import torch
import torch.nn.attention.varlen

from vita_audio_pl.errors import UserError
from vita_audio_pl.models import attention
from vita_audio_pl.models.attention import DocumentAttention
from vita_audio_pl.models.layout import Documents, PackedLayout
from vita_audio_pl.models.objectives import EveryHead
from vita_audio_pl.models.speech_lm import SpeechLMConfig

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")

HERE = ["per_document", "sdpa", "flex"]


@pytest.mark.parametrize("kernel", HERE)
@pytest.mark.parametrize("rows", [[[9, 5, 12], [11, 7]], [[8, 8], [8]], [[1, 2, 3, 20]]])
def test_changing_one_document_moves_no_other(kernel, rows, tiny, pack):
    model, batch = tiny(n_heads=3, attention=kernel), pack(rows)
    document = (0, 0)
    layout = PackedLayout(batch)
    changed = (batch.document_ids == document[1]) & (torch.arange(len(rows))[:, None] == document[0])
    other = pack(rows)
    other.input_ids[changed] = (batch.input_ids[changed] + 7) % 64
    inside = changed.reshape(-1)[torch.from_numpy(layout.flat)]
    with torch.no_grad():
        before, after = model.logits(batch), model.logits(other)
    for predictor, (old, new) in enumerate(zip(before, after, strict=True)):
        tokens = layout.head(predictor - 1).tokens if predictor else range(len(layout))
        mine = inside[torch.as_tensor(tokens)]
        assert torch.equal(old[0, ~mine], new[0, ~mine])
        assert not mine.any() or not torch.allclose(old[0, mine], new[0, mine])


@pytest.mark.parametrize("kernel", HERE)
def test_kernels_agree_with_documents_computed_alone(kernel, tiny, pack):
    """A packed row gives each document what it gets in a row of its own."""
    model, lengths = tiny(n_heads=3, attention=kernel), [9, 2, 5, 12]
    packed = pack([lengths])
    with torch.no_grad():
        together = model.logits(packed)
        start, seen = 0, [0] * 4
        for n in lengths:
            alone = pack([[n]])
            alone.input_ids[0, :n] = packed.input_ids[0, start : start + n]
            for predictor, logits in enumerate(model.logits(alone)):
                rows = slice(seen[predictor], seen[predictor] + logits.shape[1])
                torch.testing.assert_close(together[predictor][:, rows], logits, atol=1e-5, rtol=1e-5)
                seen[predictor] = rows.stop
            start += n
    assert seen == [together[predictor].shape[1] for predictor in range(4)]


def eager_flash(query, key, value, ends, _, longest, __, *, scale, window_size, enable_gqa=False):
    """What `varlen_attn` promises, in plain torch: one type of 16 bits, causal inside each document."""
    assert query.dtype == key.dtype == value.dtype and value.dtype in (torch.bfloat16, torch.float16)
    assert window_size == (-1, 0) and (enable_gqa or query.shape[1] == key.shape[1])
    pieces = []
    for start, end in itertools.pairwise(ends.tolist()):
        q, k, v = (tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa
        )
        pieces.append(out[0].transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("shares", [True, False])
def test_under_autocast_every_kernel_gets_one_type(shares, tiny, pack, monkeypatch):
    """Rotation leaves queries and keys in float32 beside 16-bit values, which neither flash nor flex would take."""
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", eager_flash)
    monkeypatch.setattr(attention, "flash_shares_keys", lambda: shares)
    batch, results = pack([[9, 5, 12], [11, 7]]), {}
    for kernel in (*HERE[:2], "flash"):
        model = tiny(attention=kernel)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch, EveryHead()).total
        loss.backward()
        results[kernel] = loss.detach(), model.model.layers[0].self_attn.k_proj.weight.grad
    for kernel in ("sdpa", "flash"):
        for one, other in zip(results["per_document"], results[kernel], strict=True):
            torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-2)
    model = tiny(attention="flex")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(batch, EveryHead()).total, results["sdpa"][0], atol=2e-3, rtol=2e-2)


def test_flash_in_float32_is_one_sentence(tiny, pack):
    with pytest.raises(UserError, match="'flash' computes in 16 bits, and this model in float32"):
        tiny(attention="flash")(pack([[9, 5]]), EveryHead())


def test_kernels_that_plan_every_new_shape_are_left_out():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_gradients_are_the_same_by_document_and_by_mask(tiny, pack):
    batch, gradients = pack([[9, 5, 12], [11, 7]]), []
    for kernel in ("per_document", "sdpa"):
        model = tiny(attention=kernel)
        model(batch, EveryHead()).total.backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_padding_is_not_computed(tiny, pack):
    model, batch = tiny(), pack([[9, 5], [3]])
    assert model.hidden_states(batch)[0].shape[1] == 9 + 5 + 3
    padding = batch.document_ids < 0
    noisy = pack([[9, 5], [3]])
    noisy.input_ids[padding] = 5
    assert torch.equal(model.logits(batch)[2], model.logits(noisy)[2])


def test_a_document_shorter_than_a_head_reaches_gives_it_no_rows(tiny, pack):
    model, batch = tiny(n_heads=4), pack([[1, 2]])
    assert [hidden.shape[1] for hidden in model.hidden_states(batch)] == [3, 1, 0, 0, 0]
    losses = model(batch, EveryHead())
    losses.total.backward()
    assert losses.counts.tolist() == [0, 0, 0, 0, 0] and losses.total.item() == 0


def test_adjacent_rows_with_equal_document_numbers_are_two_documents(pack):
    layout = PackedLayout(pack([[4], [6]]))
    assert layout.documents.lengths == (4, 6) and layout.positions.tolist() == [*range(4), *range(6)]


def test_a_wrong_kernel_is_one_sentence(tiny):
    with pytest.raises(UserError, match="must be one of per_document, sdpa, flex, flash"):
        SpeechLMConfig(tiny().config.backbone, 1, attention="fast")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flash_agrees_with_sdpa_on_a_gpu():
    lengths = (5, 1, 30, 12)
    query = torch.randn(1, 4, sum(lengths), 64, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 2, sum(lengths), 64, device="cuda", dtype=torch.bfloat16)
    device = torch.device("cuda")
    outputs = [
        DocumentAttention(Documents(lengths), kernel, device)(query, key, value, 0.125).float()
        for kernel in ("sdpa", "flash", "flex", "per_document")
    ]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=2e-2, rtol=2e-2)
