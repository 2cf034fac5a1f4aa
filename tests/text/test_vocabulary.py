"""Where every id lies, as published."""

import numpy as np
import pytest

from vita_audio_pl.errors import UserError
from vita_audio_pl.text import Vocabulary, special_tokens

QWEN2_5 = {"im_start": 151644, "im_end": 151645, "pad": 151643}


def test_the_published_vocabulary_has_168072_rows():
    vocabulary = Vocabulary(151665, 16384, **QWEN2_5)
    assert (vocabulary.size, vocabulary.first_code, vocabulary.used) == (168072, 151685, 168069)
    assert vocabulary.token(151665) == "<|begin_of_image|>"
    assert vocabulary.token(vocabulary.audio) == "<|audio|>" and vocabulary.audio == 151684
    assert vocabulary.token(168068) == "<|audio_16383|>" and vocabulary.token(168069) == "<|unused_168069|>"
    assert (vocabulary.begin_of_audio, vocabulary.end_of_audio) == (151674, 151675)


def test_continuous_input_adds_one_special_token_behind_the_end_of_audio():
    plus = Vocabulary(151665, 16384, True, **QWEN2_5)
    assert len(special_tokens()) == 20 and len(special_tokens(continuous_input=True)) == 21
    assert plus.context_of_audio == plus.end_of_audio + 1
    assert plus.first_code == 151686
    with pytest.raises(UserError, match="continuous input"):
        _ = Vocabulary(151665, 16384, **QWEN2_5).context_of_audio


def test_codes_and_ids_are_inverse_and_strangers_are_refused():
    vocabulary = Vocabulary(300, 64, im_start=297, im_end=298, pad=299)
    ids = vocabulary.code_ids(np.array([0, 63, 5], np.uint16))
    assert ids.tolist() == [320, 383, 325]
    assert vocabulary.codes_of([7, vocabulary.begin_of_audio, *ids, vocabulary.end_of_audio, 384]).tolist() == [
        0,
        63,
        5,
    ]
    for stranger in ([64], [-1]):
        with pytest.raises(UserError, match="another codec"):
            vocabulary.code_ids(stranger)


def test_fingerprints_tell_vocabularies_apart_and_survive_a_manifest():
    base = Vocabulary(300, 64, im_start=297, im_end=298, pad=299, text_fingerprint="a")
    assert Vocabulary(**base.to_dict()).fingerprint == base.fingerprint
    others = [{"n_codes": 65}, {"continuous_input": True}, {"text_fingerprint": "b"}, {"pad": 296}]
    assert len({Vocabulary(**{**base.to_dict(), **other}).fingerprint for other in others} | {base.fingerprint}) == 5


def test_control_tokens_outside_the_text_are_refused():
    with pytest.raises(UserError, match="im_end=300 is not among the 300 text tokens"):
        Vocabulary(300, 64, im_start=297, im_end=300, pad=299)
