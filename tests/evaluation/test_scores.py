"""Hand-computed scores for every normaliser and metric."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.benches.bench import BenchConfig
from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.evaluation.records import Answer, Transcript
from vita_audio_pl.evaluation.scores import normalisers
from vita_audio_pl.evaluation.scores.measures import contains_answer, contains_substring, count_errors, exact_match
from vita_audio_pl.evaluation.scores.normalisers import get_normaliser, wetext_chinese
from vita_audio_pl.evaluation.scores.profiles import REFERENCE, STRICT
from vita_audio_pl.evaluation.scores.scoring import Scoring, score_utterances, summarise
from vita_audio_pl.text.conversation import Conversation, Message


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


def test_wetext_writes_numbers_out_before_characters_are_counted(monkeypatch):
    class SpellsNumbers:
        def normalize(self, text):
            return text.replace("15", "十五")

    normalizer = ModuleType("tn.chinese.normalizer")
    normalizer.Normalizer = SpellsNumbers
    for name in ("tn", "tn.chinese"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, normalizer.__name__, normalizer)
    wetext_chinese.cache_clear()
    assert get_normaliser("wetext_chinese")("买了15台 iPhone。") == ["买", "了", "十", "五", "台", "iphone"]
    wetext_chinese.cache_clear()
    monkeypatch.setitem(sys.modules, "tn.chinese.normalizer", None)
    with pytest.raises(UserError, match="pip install WeTextProcessing"):
        get_normaliser("wetext_chinese")


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


def test_seed_tts_is_scored_as_its_scripts_do():
    """Marks go without a gap, apostrophes of ASCII and numbers stay; the rate is the mean of the utterances' rates."""
    english = get_normaliser("seed_tts_english")
    assert english("It's Dr. Who\u2019s well-known \u201c1,000\u201d!") == ["it's", "dr", "whos", "wellknown", "1000"]
    bench = BenchConfig(published_normaliser="seed_tts_english", published_average="utterances")
    rows = [{"id": str(n), "text": "x", "stopped": True, "backbone_passes": 1, "head_passes": 0, "tokens": 1,
             "scores": {"speech_wer": {"errors": wrong, "of": words}}}
            for n, (wrong, words) in enumerate([(1, 2), (0, 8)])]  # fmt: skip
    for profile, expected, normalise in (("reference", 0.25, english), ("strict", 0.1, get_normaliser("plain"))):
        rules = bench.scoring(profile)
        assert summarise("tts", rows, rules.average)["metrics"]["speech_wer"]["value"] == expected
        assert rules.normalise is normalise
        assert ("error rates are means over utterances" in rules.differences()) == (profile == "reference")


def test_chinese_as_published_needs_a_package_that_is_not_ours(monkeypatch):
    monkeypatch.setitem(sys.modules, "zhconv", None)
    normalisers.seed_tts_chinese.cache_clear()
    with pytest.raises(UserError, match="needs the package zhconv"):
        get_normaliser("seed_tts_chinese")
    monkeypatch.setitem(
        sys.modules, "zhconv", SimpleNamespace(convert=lambda text, to: text.replace("\u8a9e", "\u8bed"))
    )
    assert get_normaliser("seed_tts_chinese")("\u8a9e\u3001 Ab\u3002") == ["\u8bed", "A", "b"]
    normalisers.seed_tts_chinese.cache_clear()


def test_answers_match_as_whole_words_only():
    nine, said = [["nine"], ["9"]], "she has nineteen".split()
    assert not contains_answer(nine, said) and contains_substring(nine, said)
    assert contains_answer(nine, "she has 9 cups".split())
    assert not contains_answer([["red", "cow"]], "red big cow".split())
    assert exact_match(nine, ["nine"]) and not exact_match(nine, ["nine", "cups"]) and not exact_match(nine, [])


def scored(task, references, said, profile, *, codes=(1,), heard="", failure="", unit="plain", answers="contains"):
    """Summary of one utterance under a profile."""
    item = Item(Conversation("u", (Message("user", "?"),), ()), tuple(references))
    rules = Scoring(get_normaliser(unit), answers, profile)
    answer = Answer("u", said, codes, failure=failure)
    rows = score_utterances(task, [item], {"u": answer}, {"u": Transcript("u", heard, 1.0)}, rules)
    return summarise(task, rows)


@pytest.mark.parametrize(
    ("unit", "reference", "said", "strict", "published"),
    [
        # two words too many: 2 insertions over 3 words; cut after 3 words nothing is wrong
        ("plain", "the red cow", "the red cow lives here", 2 / 3, 0),
        # one word too few: cutting changes nothing
        ("plain", "the red cow", "the cow", 1 / 3, 1 / 3),
        # "a" put in front: 1 insertion; cut after 3 words it is an insertion and a deletion, so the quirk can hurt
        ("plain", "the red cow", "a the red cow", 1 / 3, 2 / 3),
        # characters for Chinese: two too many of four
        ("mixed", "你好世界", "你好世界谢谢", 2 / 4, 0),
    ],
)
def test_the_reference_profile_cuts_transcripts_at_the_length_of_their_reference(
    unit, reference, said, strict, published
):
    for profile, expected in ((STRICT, strict), (REFERENCE, published)):
        result = scored("asr", [reference], said, profile, unit=unit)
        assert result["metrics"]["wer"]["value"] == pytest.approx(expected, abs=1e-5)


def test_the_reference_profile_drops_silent_answers_from_speech_figures_only():
    strict, published = (scored("sqa", ["paris"], "it is paris", p, codes=()) for p in (STRICT, REFERENCE))
    assert strict["metrics"]["speech_accuracy"] | {"value": 0, "utterances": 1} == strict["metrics"]["speech_accuracy"]
    assert "speech_accuracy" not in published["metrics"] and published["metrics"]["text_accuracy"]["value"] == 1
    assert strict["silent"] == published["silent"] == 1 and published["left_out"] == 1


def test_the_reference_profile_skips_utterances_that_could_not_be_asked():
    strict, published = (scored("asr", ["the cow"], "", p, failure="no such file") for p in (STRICT, REFERENCE))
    assert strict["metrics"]["wer"]["value"] == 1 and strict["failed"] == 1
    assert published["metrics"] == {} and published["failed"] == published["left_out"] == 1


def test_what_an_answer_costs_is_counted_over_those_that_were_asked():
    items = [Item(Conversation(str(n), (Message("user", "?"),), ()), ("the cow",)) for n in range(8)]
    deaf = {str(n): Answer(str(n), failure="no such file") for n in range(5)}
    asked = {str(n): Answer(str(n), "the cow", tokens=9, backbone_passes=6, head_passes=3) for n in range(5, 8)}
    rows = score_utterances("asr", items, deaf | asked, None, Scoring(get_normaliser("plain")))
    found = summarise("asr", rows)
    assert (found["utterances"], found["failed"]) == (8, 5) and found["metrics"]["wer"]["utterances"] == 8
    assert (found["backbone_passes"], found["head_passes"], found["tokens"]) == (6, 3, 9)
    assert summarise("asr", rows[:5])["backbone_passes"] == 0


def test_the_reference_profile_accepts_an_answer_inside_another_word():
    strict, published = (scored("sqa", ["nine"], "nineteen", p, heard="ninety") for p in (STRICT, REFERENCE))
    for metric in ("text_accuracy", "speech_accuracy"):
        assert strict["metrics"][metric]["value"] == 0 and published["metrics"][metric]["value"] == 1


def test_speech_that_only_has_to_contain_an_answer_is_counted_against_its_own_text():
    long = "well i think that it is paris in france"
    right = scored("sqa", ["paris"], long, STRICT, heard=long)
    assert right["metrics"]["speech_wer"]["value"] == 0 and right["metrics"]["speech_accuracy"]["value"] == 1
    half = scored("sqa", ["paris"], long, STRICT, heard="well i think that")
    assert half["metrics"]["speech_wer"]["value"] == pytest.approx(5 / 9, abs=1e-5)
    silent = scored("sqa", ["paris"], long, STRICT, codes=())
    assert silent["metrics"]["speech_wer"]["value"] == 1
    wordless = scored("sqa", ["paris"], "", STRICT, heard="paris")
    assert "speech_wer" not in wordless["metrics"] and wordless["left_out"] == 1
    exact = scored("sqa", ["paris"], long, STRICT, heard=long, answers="exact")
    assert exact["metrics"]["speech_wer"]["value"] == 8
    assert scored("tts", ["paris"], long, STRICT, heard=long)["metrics"]["speech_wer"]["value"] == 8


def test_an_accepted_answer_that_normalises_to_nothing_is_never_right():
    for answers in ("exact", "contains"):
        result = scored("text", ["paris", "!"], "...", STRICT, answers=answers)
        assert result["metrics"]["text_accuracy"]["value"] == 0
