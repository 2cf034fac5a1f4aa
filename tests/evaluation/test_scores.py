"""Hand-computed scores for every normaliser and metric."""

import json

import pytest

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.normalisers import get_normaliser
from vita_audio_pl.evaluation.scores import contains_answer, contains_substring, count_errors, exact_match


@pytest.mark.parametrize(
    ("name", "text", "units"),
    [
        ("plain", "  The Cow's BIG, red\u3000barn! ", ["the", "cows", "big", "red", "barn"]),
        ("plain", "twenty-one 21", ["twenty", "one", "21"]),
        ("plain", "?!", []),
        ("mixed", "我买了iPhone 15，很好。", ["我", "买", "了", "iphone", "15", "很", "好"]),
        ("mixed", "ＡＢＣ你好abc", ["abc", "你", "好", "abc"]),
        ("mixed", "カタカナ ok", ["カ", "タ", "カ", "ナ", "ok"]),
        ("characters", "我买iPad。", ["我", "买", "i", "p", "a", "d"]),
        ("whisper_english", "Mr. Smith won't pay $20 for twenty one colours", None),
        ("whisper_basic", "Où est-il ? (rires)", ["où", "est", "il"]),
    ],
)
def test_normaliser_gives_the_units_that_are_counted(name, text, units):
    if units is None:
        units = "mister smith will not pay $20 for 21 colours".split()
    assert get_normaliser(name)(text) == units


def test_whisper_spelling_map_is_read_from_a_checkpoint_file(tmp_path):
    (tmp_path / "normalizer.json").write_text(json.dumps({"colours": "colors"}))
    assert get_normaliser("whisper_english", str(tmp_path / "normalizer.json"))("Colours") == ["colors"]
    with pytest.raises(UserError, match="does not exist"):
        get_normaliser("whisper_english", str(tmp_path / "nowhere.json"))


def test_unknown_normaliser_is_refused_with_the_choices():
    with pytest.raises(UserError, match="choose plain"):
        get_normaliser("none")


def test_word_errors_by_hand():
    # the -> a (1 S), big missing (1 D), "now" added (1 I): 3 errors over 5 words
    counts = count_errors("the big red cow lives".split(), "a red cow lives now".split())
    assert (counts.substitutions, counts.deletions, counts.insertions) == (1, 1, 1)
    assert counts.rate == pytest.approx(3 / 5)


def test_character_errors_of_mixed_text_by_hand():
    mixed = get_normaliser("mixed")
    # reference 我 买 了 iphone 15; hypothesis 我 卖 了 iphone: one substitution, one deletion over five units
    counts = count_errors(mixed("我买了 iPhone 15"), mixed("我卖了iPhone"))
    assert (counts.substitutions, counts.deletions, counts.insertions, counts.reference_units) == (1, 1, 0, 5)


def test_empty_hypothesis_is_all_deletions_and_empty_reference_is_an_error():
    counts = count_errors(["red", "cow"], [])
    assert (counts.deletions, counts.rate) == (2, 1.0)
    with pytest.raises(ValueError, match="empty"):
        count_errors([], ["red"])


def test_answers_match_as_whole_words_only():
    nine, said = [["nine"], ["9"]], "she has nineteen".split()
    assert not contains_answer(nine, said) and contains_substring(nine, said)
    assert contains_answer(nine, "she has 9 cups".split())
    assert not contains_answer([["red", "cow"]], "red big cow".split())
    assert exact_match(nine, ["nine"]) and not exact_match(nine, ["nine", "cups"]) and not exact_match(nine, [])
