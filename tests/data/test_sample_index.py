from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_corpus import N_CODES, toy_tokenizer

from vita_audio_pl.data.index import COLUMNS, Index, IndexEntry, IndexPiece, merge_indexes, write_index
from vita_audio_pl.data.samples import TokenizedSample, pack_sample, unpack_sample
from vita_audio_pl.data.shape import shape_of
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import IntervalRatio
from vita_audio_pl.text import AudioCodes, Renderer, RenderOptions, Segment, TextIds, Turn

TOKENIZER = toy_tokenizer()
VOCABULARY = TOKENIZER.vocabulary(N_CODES)

texts = st.integers(0, 40).map(lambda n: TextIds(np.arange(n) % 300))
audios = st.integers(0, 60).map(lambda n: AudioCodes(np.arange(n) % N_CODES))


@st.composite
def turns(draw: st.DrawFn) -> tuple[Turn, ...]:
    """Prompts of any text and audio, and at least one answer with at most one audio."""
    conversation: list[Turn] = []
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=4)) + ["assistant"]:
        if role == "assistant":
            segments: list[Segment] = draw(st.lists(texts, max_size=1)) + draw(st.lists(audios, max_size=1))
        else:
            segments = draw(st.lists(st.one_of(texts, audios), max_size=3))
        conversation.append(Turn(role, tuple(segments)))
    return tuple(conversation)


def write(path: Path, conversations: list[tuple[Turn, ...]], shard: int = 0) -> Index:
    rule = Renderer(VOCABULARY, TOKENIZER, RenderOptions(None)).length_rule
    entries = [IndexEntry(shard, 4 * i, i, shape_of(turns, rule)) for i, turns in enumerate(conversations)]
    write_index(path, entries)
    return Index(path)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(turns(), min_size=1, max_size=8), st.sampled_from([None, "boost", "balance", "3,4,2,7"]), st.integers(0, 5)
)
def test_lengths_and_labels_are_exact_for_any_ratio_without_opening_a_shard(
    tmp_path_factory: pytest.TempPathFactory, conversations: list[tuple[Turn, ...]], ratio: str | None, lead_in: int
) -> None:
    index = write(tmp_path_factory.mktemp("index") / "index.bin", conversations)
    options = RenderOptions(IntervalRatio.of(ratio) if ratio else None, lead_in=(1,) * lead_in, text_weight=4.0)
    renderer = Renderer(VOCABULARY, TOKENIZER, options)
    measured = index.measure(renderer.length_rule, continuous=False)
    some = np.arange(len(conversations))[::2]
    assert index.measure(renderer.length_rule, False, some).tokens.tolist() == measured.tokens[some].tolist()
    for i, conversation in enumerate(conversations):
        rendered = renderer.render(conversation)
        assert measured.tokens[i] == len(rendered)
        assert measured.text_labels[i] + measured.audio_labels[i] == (rendered.labels >= 0).sum()
        weight = 4.0 * measured.text_labels[i] + measured.audio_labels[i]
        assert weight == pytest.approx(rendered.loss_weights.sum())


@settings(max_examples=40, deadline=None)
@given(turns(), st.text(max_size=12))
def test_a_sample_comes_back_from_its_bytes(conversation: tuple[Turn, ...], name: str) -> None:
    packed = pack_sample(TokenizedSample(name, conversation))
    assert len(packed) % 4 == 0
    back = unpack_sample(packed)
    assert back.id == name and [turn.role for turn in back.turns] == [turn.role for turn in conversation]
    renderer = Renderer(VOCABULARY, TOKENIZER, RenderOptions(IntervalRatio.of("boost")))
    assert renderer.render(back.turns).ids.tolist() == renderer.render(conversation).ids.tolist()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(turns(), max_size=5), min_size=1, max_size=4))
def test_merged_indexes_measure_like_their_parts(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[tuple[Turn, ...]]]
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    rule = Renderer(VOCABULARY, TOKENIZER, RenderOptions(IntervalRatio.of("boost"))).length_rule
    alone = [write(folder / f"{n}.index", part) for n, part in enumerate(parts)]
    merge_indexes([IndexPiece(index.path, shard=n) for n, index in enumerate(alone)], folder / "index.bin")
    merged = Index(folder / "index.bin")
    assert merged.intact()
    assert merged["shard"].tolist() == [n for n, part in enumerate(parts) for _ in part]
    expected = np.concatenate([index.measure(rule, False).tokens for index in alone])
    assert merged.measure(rule, False).tokens.tolist() == expected.tolist()
    middle = range(len(expected) // 3, len(expected) // 3 * 2)
    merge_indexes([IndexPiece(merged.path, middle), IndexPiece(alone[0].path, moved=4096)], folder / "of_pieces")
    pieces, whole = Index(folder / "of_pieces"), len(alone[0])
    wanted = [*expected[middle.start : middle.stop], *expected[:whole]]
    assert pieces.measure(rule, False).tokens.tolist() == wanted
    assert pieces["offset"].tolist()[len(middle) :] == (alone[0]["offset"].astype(int) + 1024).tolist()


def test_a_sample_costs_at_most_32_bytes(tmp_path: Path) -> None:
    assert COLUMNS.itemsize == 24
    conversation = (Turn("user", (TextIds(np.arange(5)),)), Turn("assistant", (AudioCodes(np.arange(9)),)))
    write(tmp_path / "index.bin", [conversation] * 1000)
    assert (tmp_path / "index.bin").stat().st_size / 1000 <= 32


def test_an_answer_of_a_hundred_thousand_tokens_is_counted_exactly(tmp_path: Path) -> None:
    long = (Turn("user", (TextIds(np.arange(3)),)), Turn("assistant", (TextIds(np.zeros(100_000, int)),)))
    index = write(tmp_path / "index.bin", [long])
    rule = Renderer(VOCABULARY, TOKENIZER, RenderOptions(None)).length_rule
    assert index.measure(rule, False).text_labels.tolist() == [100_000 + rule.closing]


def test_a_cut_index_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "index.bin", [(Turn("assistant", (TextIds(np.arange(3)),)),)]).path
    whole = path.read_bytes()
    for damaged in (whole[:-8], whole[:30], b"", b"x" * len(whole)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="index"):
            Index(path)


def test_a_conversation_without_an_answer_is_refused() -> None:
    rule = Renderer(VOCABULARY, TOKENIZER, RenderOptions(None)).length_rule
    with pytest.raises(UserError, match="no answer"):
        shape_of([Turn("user", (TextIds(np.arange(3)),))], rule)
