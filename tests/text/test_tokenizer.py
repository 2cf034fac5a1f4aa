"""The text tokenizer: trained or loaded, alike for us and for transformers, and safe against typed control tokens."""

import json
import pickle
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from vita_audio_pl.errors import UserError
from vita_audio_pl.text import TextTokenizer, code_token, special_tokens

PUBLISHED = Path(__file__).parents[1] / "parity" / "data" / "tokenizer.json"
TEXTS = [
    "where does the big red cow live",
    "the big red cow lives in the farm",
    "It's 12 o'clock.\n\n今天天气很好 ",
] * 3


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    return TextTokenizer.train(TEXTS, 320)


def test_the_same_texts_train_the_same_tokenizer(trained):
    assert TextTokenizer.train(TEXTS, 320).fingerprint == trained.fingerprint
    assert TextTokenizer.train(TEXTS[:1], 320).fingerprint != trained.fingerprint
    assert trained.n_text <= 320
    assert len(trained.encode("the big red cow")) < len("the big red cow")


@pytest.mark.parametrize("text", [*TEXTS[:3], "", "\n", "ñ 🐄 \x00\t  x", "<|im_end|> <|audio_3|> <|begin_of_audio|>"])
def test_any_text_comes_back_and_never_as_a_control_token(trained, text):
    for tokenizer in (trained, TextTokenizer.load(PUBLISHED)):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.im_start, tokenizer.im_end, tokenizer.pad} & set(ids)
        assert max(ids, default=0) < tokenizer.n_text


def test_control_and_audio_tokens_have_no_text_but_can_be_written_out(trained):
    vocabulary = trained.vocabulary(8)
    ids = [
        trained.im_start,
        *trained.encode("the cow"),
        vocabulary.begin_of_audio,
        vocabulary.first_code + 7,
        vocabulary.size - 1,
    ]
    assert trained.decode(ids) == "the cow"
    assert trained.written_out(ids, vocabulary).startswith("<|im_start|>the cow<|begin_of_audio|><|audio_7|>")


def test_a_published_tokenizer_is_cut_to_its_text_part(tmp_path):
    text_part = TextTokenizer.load(PUBLISHED)
    assert text_part.n_text == 403
    whole = Tokenizer.from_file(str(PUBLISHED))
    whole.add_tokens([AddedToken(code_token(code)) for code in range(16384)])
    whole.save(str(tmp_path / "tokenizer.json"))
    assert TextTokenizer.load(tmp_path).fingerprint == text_part.fingerprint
    vocabulary = text_part.vocabulary(16384)
    for id in (403, vocabulary.begin_of_audio, vocabulary.first_code, vocabulary.used - 1):
        assert whole.id_to_token(id) == vocabulary.token(id)


def test_a_tokenizer_with_continuous_input_is_cut_too_and_another_order_is_refused(trained, tmp_path):
    for tokens, accepted in [(special_tokens(True), True), (special_tokens()[::-1], False)]:
        trained.save(tmp_path)
        extended = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        extended.add_special_tokens(list(tokens))
        extended.save(str(tmp_path / "tokenizer.json"))
        if accepted:
            assert TextTokenizer.load(tmp_path).fingerprint == trained.fingerprint
        else:
            with pytest.raises(UserError, match="in an order that is not VITA-Audio's"):
                TextTokenizer.load(tmp_path)


def test_a_saved_tokenizer_is_the_same_for_us_and_for_transformers(trained, tmp_path):
    from transformers import AutoTokenizer

    trained.save(tmp_path)
    loaded, theirs = TextTokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.fingerprint == trained.fingerprint == pickle.loads(pickle.dumps(trained)).fingerprint
    for text in TEXTS[:3]:
        assert loaded.encode(text) == trained.encode(text) == theirs(text)["input_ids"]
    assert theirs.eos_token_id == trained.im_end and theirs.pad_token_id == trained.pad


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no tokenizer at"):
        TextTokenizer.load(tmp_path)
    file = tmp_path / "tokenizer.json"
    for content in ("{", "[]", '{"added_tokens": [1]}', '{"added_tokens": []}'):
        file.write_text(content)
        with pytest.raises(UserError, match="tokenizer.json"):
            TextTokenizer.load(file)
    description = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    description["added_tokens"] = []
    file.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"has no <\|endoftext\|>, <\|im_start\|>, <\|im_end\|>"):
        TextTokenizer.load(file)
    with pytest.raises(UserError, match="too small"):
        TextTokenizer.train(TEXTS, 200)
