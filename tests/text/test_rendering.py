"""Turns as rows: labels, writers, weights, lead-in, corruption, frames, and lengths known beforehand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern, IntervalRatio, deinterleave
from vita_audio_pl.text import (
    ROLES,
    AudioCodes,
    AudioFrames,
    Conversation,
    Message,
    Renderer,
    RenderOptions,
    TextIds,
    TextTokenizer,
    Turn,
    conversation_to_turns,
)

TOKENIZER = TextTokenizer.train(["user system assistant the big red cow"] * 3, 300)
N_CODES = 32
BOOST = IntervalRatio.of("boost")


def renderer(ratio: IntervalRatio | None = BOOST, continuous_input: bool = False, **options) -> Renderer:
    options = {"pattern": DecodePattern.of("boost"), "n_heads": 10, **options}
    return Renderer(TOKENIZER.vocabulary(N_CODES, continuous_input), TOKENIZER, RenderOptions(ratio, **options))


def text(n: int) -> TextIds:
    return TextIds(np.arange(n, dtype=np.int32) % 200)


def audio(n: int) -> AudioCodes:
    return AudioCodes((np.arange(n) % N_CODES).astype(np.uint16))


def ask(*segments) -> Turn:
    return Turn("user", segments)


def answer(*segments) -> Turn:
    return Turn("assistant", segments)


@st.composite
def conversations(draw):
    turns = []
    for role in draw(st.lists(st.sampled_from(ROLES), min_size=1, max_size=4)):
        pieces = [text(draw(st.integers(0, 20))), audio(draw(st.integers(0, 60))), text(draw(st.integers(0, 5)))]
        if role == "user" and draw(st.booleans()):
            pieces += [AudioFrames(np.zeros((draw(st.integers(0, 30)), 2), np.float32)), audio(3)]
        turns.append(Turn(role, tuple(pieces[: draw(st.integers(1, len(pieces)))])))
    return turns


@given(
    st.lists(conversations(), min_size=1, max_size=5),
    st.sampled_from([None, BOOST, IntervalRatio((2, 3, 1, 5))]),
    st.integers(0, 5),
)
@settings(deadline=None)
def test_lengths_and_label_counts_are_known_without_rendering(samples, ratio, n_lead_in):
    render = renderer(ratio, continuous_input=True, lead_in=(1,) * n_lead_in, audio_weight=0.5)
    turns = [turn for sample in samples for turn in sample]
    counts = np.array([turn.counts() for turn in turns]).T
    first_turn = np.cumsum([0] + [len(sample) for sample in samples[:-1]])
    lengths = render.length_rule.of_turns(np.array([ROLES.index(turn.role) for turn in turns]), *counts)
    lengths = lengths.per_sample(first_turn)
    for number, sample in enumerate(samples):
        rendered = render.render(sample)
        labelled = rendered.labels != -100
        audio_labels = int((rendered.loss_weights == 0.5).sum())
        assert len(rendered) == render.length(sample) == lengths.tokens[number]
        assert audio_labels == lengths.audio_labels[number]
        assert labelled.sum() - audio_labels == lengths.text_labels[number]


@given(conversations(), st.sampled_from([None, BOOST, IntervalRatio((2, 3, 1, 5))]))
@settings(deadline=None)
def test_nothing_of_an_answer_is_lost(turns, ratio):
    render = renderer(ratio, continuous_input=True)
    vocabulary = render.vocabulary
    for turn in turns:
        labels = render.render([turn]).labels
        labels = labels[labels != -100]
        if turn.role != "assistant":
            assert labels.size == 0
            continue
        assert labels[-2:].tolist() == [vocabulary.im_end, *TOKENIZER.encode("\n")]
        text_back, ids = deinterleave(labels[:-2], vocabulary.begin_of_audio, vocabulary.end_of_audio)
        pieces = [segment.ids for segment in turn.segments if isinstance(segment, TextIds)]
        assert text_back.tolist() == np.concatenate([np.empty(0, int), *pieces]).tolist()
        codes = [segment.codes for segment in turn.segments if isinstance(segment, AudioCodes)]
        assert vocabulary.codes_of(ids).tolist() == np.concatenate([np.empty(0, int), *codes]).tolist()


def test_labels_cover_the_answer_and_its_end_only():
    render = renderer()
    rendered = render.render([ask(text(3)), answer(text(2)), ask(audio(4)), answer(text(2), audio(3))])
    labelled = rendered.labels != -100
    assert (rendered.labels[labelled] == rendered.ids[labelled]).all()
    assert (rendered.writers[~labelled] == -1).all() and (rendered.writers[labelled] >= 0).all()
    assert (rendered.loss_weights == labelled).all()
    answers = TOKENIZER.written_out(rendered.ids[labelled], render.vocabulary)
    assert answers.count("<|im_end|>\n") == 2 and "<|im_start|>" not in answers


def test_writers_start_anew_in_each_spoken_answer_and_stay_with_the_backbone_in_text():
    render = renderer()
    rendered = render.render([ask(text(1)), answer(text(30)), ask(text(1)), answer(text(5), audio(14))])
    by_answer = np.split(rendered.writers, np.flatnonzero(np.diff((rendered.labels != -100).astype(int))) + 1)[1::2]
    assert by_answer[0].tolist() == [0] * 32
    closing = BOOST.length(5, 14)
    assert by_answer[1].tolist() == [*DecodePattern.of("boost").writers(closing + 1, 10), 0]
    assert by_answer[1][closing] == 9


def test_weights_tell_audio_from_text():
    render = renderer(text_weight=4.0, audio_weight=0.5)
    rendered = render.render([ask(audio(3)), answer(text(2), audio(3))])
    content = [4.0, 4.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert rendered.loss_weights[rendered.labels != -100].tolist() == [*content, 4.0, 4.0]
    assert rendered.loss_weights[rendered.labels == -100].max() == 0


def test_lead_in_goes_before_an_answers_audio_and_nowhere_else():
    render = renderer(lead_in=(9, 9))
    rendered = render.render([ask(audio(3)), answer(text(1), audio(3)), answer(text(2)), answer(text(2), audio(0))])
    assert render.vocabulary.codes_of(rendered.ids).tolist() == [0, 1, 2, 9, 9, 0, 1, 2]


def test_corruption_changes_its_share_of_prompt_codes_and_no_answer():
    render = renderer(prompt_corruption=0.25)
    rendered = render.render([ask(audio(200_000)), answer(text(1), audio(500))], np.random.default_rng(0))
    codes = render.vocabulary.codes_of(rendered.ids)
    original = np.arange(200_000) % N_CODES
    changed = codes[:200_000] != original
    assert 0.247 < changed.mean() < 0.253
    shifts = np.bincount((codes[:200_000] - original)[changed] % N_CODES, minlength=N_CODES)
    assert shifts[1:].min() > 0.9 * shifts[1:].mean()
    assert codes[200_000:].tolist() == (np.arange(500) % N_CODES).tolist()
    again = render.render([ask(audio(200_000)), answer(text(1), audio(500))], np.random.default_rng(0))
    assert (again.ids == rendered.ids).all()
    with pytest.raises(ValueError, match="rng"):
        render.render([ask(audio(3))])


def test_without_a_ratio_text_and_audio_stay_as_they_stand():
    render = renderer(None)
    rendered = render.render([answer(text(1), audio(2), text(2))])
    v = render.vocabulary
    content = [0, v.begin_of_audio, v.first_code, v.first_code + 1, v.end_of_audio, 0, 1]
    assert rendered.labels[rendered.labels != -100].tolist() == [*content, v.im_end, *TOKENIZER.encode("\n")]


def test_text_after_the_audio_is_spoken_too():
    rendered = renderer().render([answer(text(1), audio(9), text(2))])
    assert rendered.ids.tolist() == renderer().render([answer(TextIds(np.array([0, 0, 1])), audio(9))]).ids.tolist()


def test_a_prompt_is_the_beginning_of_what_was_trained():
    render = renderer(prompt_corruption=0.5)
    question = [
        Turn("system", (text(2), audio(2), text(1))),
        ask(text(1), audio(5)),
        answer(text(3), audio(9)),
        ask(text(2)),
    ]
    whole = renderer().render([*question, answer(text(3))])
    prompt = render.prompt(question)
    assert prompt.tolist() == whole.ids[: prompt.size].tolist()
    assert TOKENIZER.written_out(prompt, render.vocabulary).endswith("<|im_start|>assistant\n")


def test_frames_become_placeholders_between_the_markers():
    render = renderer(continuous_input=True)
    v = render.vocabulary
    rendered = render.render([ask(AudioFrames(np.zeros((6, 560), np.float32))), answer(text(1))])
    assert (rendered.ids == v.context_of_audio).sum() == 6 + 4
    first = rendered.ids.tolist().index(v.context_of_audio)
    assert rendered.ids[first - 1] == v.begin_of_audio and rendered.ids[first + 10] == v.end_of_audio
    with pytest.raises(UserError, match="continuous input"):
        renderer().render([ask(AudioFrames(np.zeros((6, 560), np.float32)))])
    with pytest.raises(UserError, match="an answer must hold at most one audio, as codes"):
        render.render([answer(AudioFrames(np.zeros((6, 560), np.float32)))])


def test_two_audios_in_an_answer_and_codes_of_another_codec_are_refused():
    with pytest.raises(UserError, match="at most one audio"):
        renderer().render([answer(text(1), audio(3), audio(3))])
    with pytest.raises(UserError, match="code 40 is outside the codebook of 32"):
        renderer().render([ask(AudioCodes(np.array([3, 40])))])
    with pytest.raises(UserError, match="another codec"):
        renderer(lead_in=(40,))


@pytest.mark.parametrize(
    "options",
    [{"prompt_corruption": 1.0}, {"text_weight": -1}, {"text_weight": 0, "audio_weight": 0}, {"lead_in": (-1,)}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        RenderOptions(BOOST, **options)


def test_a_conversation_becomes_turns_with_its_audios_in_order():
    conversation = Conversation(
        "c",
        (
            Message("system", "Your Voice: <|audio|>\n"),
            Message("user", "Convert the text to speech.\ncow"),
            Message("assistant", "<|audio|>"),
        ),
        ("voice.wav", "speech.wav"),
    )
    turns = conversation_to_turns(conversation, TOKENIZER, [np.array([1, 2]), np.array([3])])
    kinds = [[type(segment).__name__ for segment in turn.segments] for turn in turns]
    assert kinds == [["TextIds", "AudioCodes", "TextIds"], ["TextIds"], ["TextIds", "AudioCodes"]]
    assert turns[0].segments[1].codes.tolist() == [1, 2] and turns[2].segments[1].codes.tolist() == [3]
    assert TOKENIZER.decode(turns[2].segments[0].ids) == "cow"
    for wrong, sentence in [
        ([np.array([1])], "1 audios were given for 2 paths"),
        ([np.array([1]), np.array([-1])], "-1 is not a code"),
        ([np.array([1]), np.array([[1]])], "one row of whole numbers"),
        ([np.array([1]), np.array([0.5])], "one row of whole numbers"),
        ([np.array([1]), AudioFrames(np.zeros((2, 2), np.float32))], "answer's audio must be codes"),
    ]:
        with pytest.raises(UserError, match=sentence):
            conversation_to_turns(conversation, TOKENIZER, wrong)
