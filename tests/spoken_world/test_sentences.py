"""The split is honest: nothing of dev or test is ever seen in training, though every word is."""

import re
from collections import Counter

import pytest

from vita_audio_pl.spoken_world.grammar import grammar
from vita_audio_pl.spoken_world.plan import ASSISTANT, INPUT_VOICES, UNSEEN_VOICE, Corpus, plan_corpus
from vita_audio_pl.spoken_world.sentences import FULL, LEXICONS, SPLITS, split_sentences, vocabulary

SIZES = list(LEXICONS)


def texts_of(corpus: Corpus, split: str) -> set[str]:
    """Every text of a split in whatever role: read, spoken, asked or answered."""
    texts = set()
    for name, rows in corpus.samples.items():
        if name.endswith(f".{split}"):
            for row in rows:
                for message in row["messages"]:
                    texts |= set(message["content"].split("\n"))
    spoken = {path: text for (_, text), path in corpus.utterances.items()}
    for name, rows in corpus.samples.items():
        if name.endswith(f".{split}"):
            texts |= {spoken[path] for row in rows for path in row["audios"]}
    return texts - {"<|audio|>", "Convert the speech to text.", "Convert the text to speech."}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_text_of_one_split_occurs_in_another(size, seed):
    corpus = plan_corpus(LEXICONS[size], seed)
    train, dev, test = (texts_of(corpus, split) for split in SPLITS)
    assert train and dev and test
    assert not train & dev and not train & test and not dev & test
    assert texts_of(corpus, "unseen_voice") <= test


@pytest.mark.parametrize("size", SIZES)
def test_every_word_is_trained_and_none_is_outside_the_vocabulary(size):
    corpus = plan_corpus(LEXICONS[size], 0)
    words = set(vocabulary(LEXICONS[size]))
    assert {word for text in texts_of(corpus, "train") for word in text.split()} == words
    assert {word for text in texts_of(corpus, "test") for word in text.split()} <= words


def test_the_full_test_set_has_three_hundred_different_texts_per_task():
    corpus = plan_corpus(FULL, 0)
    for name in ("asr.test", "tts.test", "sqa.test", "text.test", "asr.unseen_voice", "sqa.unseen_voice"):
        rows = corpus.samples[name]
        spoken = {path: text for (_, text), path in corpus.utterances.items()}
        asked = {(row["messages"][0]["content"], *(spoken[path] for path in row["audios"])) for row in rows}
        assert len(rows) >= 300 and len(asked) == len(rows), name


@pytest.mark.parametrize("size", SIZES)
def test_voices_keep_their_roles(size):
    corpus = plan_corpus(LEXICONS[size], 0)
    voice = {path: voice for (voice, _), path in corpus.utterances.items()}
    for name, rows in corpus.samples.items():
        task, split = name.split(".")
        for row in rows:
            heard, said = [], []
            if task in ("asr", "sqa"):
                heard.append(row["audios"][0])
            if task in ("tts", "sqa"):
                said.append(row["audios"][-1])
            allowed = {UNSEEN_VOICE} if split == "unseen_voice" else set(INPUT_VOICES)
            assert {voice[path].name for path in heard} <= allowed
            assert {voice[path] for path in said} <= {ASSISTANT}
    assert len({UNSEEN_VOICE, ASSISTANT.name, *INPUT_VOICES}) == 5
    trained = [voice[row["audios"][0]] for row in corpus.samples["asr.train"]]
    shares = Counter(v.name for v in trained)
    assert min(shares.values()) > 0.2 * len(trained)
    assert len(set(trained)) > 30, "speed and pitch vary"


def test_samples_have_the_form_of_their_task():
    corpus = plan_corpus(LEXICONS["smoke"], 0)
    for name, rows in corpus.samples.items():
        assert [row["id"] for row in rows] == [f"{name}.{n:05d}" for n in range(len(rows))]
        for row in rows:
            (user, assistant) = (message["content"] for message in row["messages"])
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
            assert (user + assistant).count("<|audio|>") == len(row["audios"])
            form = {
                "asr": (r"Convert the speech to text\.\n<\|audio\|>", r"[a-z ]+"),
                "tts": (r"Convert the text to speech\.\n[a-z ]+", r"<\|audio\|>"),
                "sqa": (r"<\|audio\|>", r"the [a-z ]+\n<\|audio\|>"),
                "text": (r"[a-z ]+", r"the [a-z ]+"),
            }[row["task"]]
            assert re.fullmatch(form[0], user) and re.fullmatch(form[1], assistant)


@pytest.mark.parametrize("size", SIZES)
def test_the_grammar_accepts_every_sentence(size):
    rules = dict(re.findall(r"<(\w+)> = ([^;]*);", grammar(LEXICONS[size])))
    pattern = rules["sentence"]
    while "<" in pattern:
        pattern = re.sub(r"<(\w+)>", lambda match: f"(?:{rules[match[1]]})", pattern)
    pattern = re.compile(re.sub(r" ?\| ?", "|", pattern))
    for split in split_sentences(LEXICONS[size], 0).values():
        for text in (*split.questions, *split.answers, *split.statements):
            assert pattern.fullmatch(text), text
    assert not pattern.fullmatch("the cow") and not pattern.fullmatch("where does the big red barn live")


def test_answers_to_questions_follow_from_the_world():
    facts = {animal.name: animal for animal in FULL.animals}
    numbers = "one two three four five six seven eight nine".split()
    for split in split_sentences(FULL, 0).values():
        for exchange in split.exchanges:
            asked, answer = exchange.question.split(), exchange.answer.split()
            if "has" in asked:
                assert numbers.index(answer[3]) == numbers.index(asked[3]) + 1 and answer[4] == asked[4]
            else:
                animal = facts[asked[5]]
                assert answer[1:4] == asked[3:6] and answer[-1] in (animal.home, animal.food, animal.act)
