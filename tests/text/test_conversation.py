"""Conversations as written: what is read, what is refused, and the text-to-speech rewrite."""

import json

import pytest

from vita_audio_pl.errors import UserError
from vita_audio_pl.text import Conversation


def sample(*messages: tuple[str, str], **more) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in messages], **more})


def test_a_line_is_read_and_named_after_its_place_or_its_id():
    line = sample(("user", "<|audio|>"), ("assistant", "Hi\n<|audio|>"), audios=["a.wav", "b.wav"])
    conversation = Conversation.from_json(line, "qa.jsonl:3")
    assert conversation.id == "qa.jsonl:3"
    assert conversation.audios == ("a.wav", "b.wav")
    assert [(message.role, message.n_audios) for message in conversation.messages] == [("user", 1), ("assistant", 1)]
    assert Conversation.from_json({**json.loads(line), "id": 17, "speaker": "x"}, "qa.jsonl:3").id == "17"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{messages", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "must be an object with 'messages', not a list"),
        ("{}", "there are no messages"),
        ('{"messages": []}', "there are no messages"),
        ('{"messages": "hi"}', "there are no messages"),
        ('{"messages": ["hi"]}', "message 1 must be an object"),
        ('{"messages": [{"from": "human", "value": "hi"}]}', "message 1 has no 'role'"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "'content' that is not text"),
        (sample(("user", "hi"), ("tool", "x")), "message 2 has the role 'tool'; use one of system, user, assistant"),
        (sample(("user", "hi"), ("assistant", " \n")), r"message 2 \(assistant\) is empty"),
        (sample(("user", "<|audio|><|audio|>"), audios=["a.wav"]), r"2 <\|audio\|> for 1 audio paths"),
        (sample(("user", "<|audio|>")), r"1 <\|audio\|> for 0 audio paths"),
        (sample(("user", "hi"), audios=["a.wav"]), r"0 <\|audio\|> for 1 audio paths"),
        (sample(("user", "<|audio|>"), audios="a.wav"), "'audios' must be a list of paths"),
        (sample(("user", "<|audio|>"), audios=[None]), "'audios' must be a list of paths"),
        (sample(("user", "a"), ("assistant", "<|audio|> <|audio|>"), audios=["a", "b"]), "answer with 2 audios"),
        (sample(("user", "half a face \ud83d")), "half a character"),
        (sample(("user", "hi"), id=[1]), "'id' must be a name"),
    ],
)
def test_bad_lines_are_refused_by_name(line, sentence):
    with pytest.raises(UserError, match=sentence) as failure:
        Conversation.from_json(line, "qa.jsonl:3")
    assert str(failure.value).startswith("qa.jsonl:3: ")
    assert "\n" not in str(failure.value)


def test_text_to_speech_becomes_an_answer_of_text_and_audio():
    line = sample(
        ("system", "Your Voice: <|audio|>\n"),
        ("user", "Convert the text to speech.\n Good day. "),
        ("assistant", "<|audio|>"),
        ("user", "Convert the text to speech.\nBye.<|audio|>"),
        ("assistant", "<|audio|>"),
        audios=["v", "a", "b", "c"],
    )
    rewritten = Conversation.from_json(line, "tts.jsonl:1").tts_rewrite()
    assert [message.content for message in rewritten.messages if message.role == "assistant"] == [
        "Good day.<|audio|>",
        "Bye.<|audio|>",
    ]
    assert rewritten.audios == ("v", "a", "b", "c")


def test_requests_other_than_text_to_speech_are_left_alone():
    line = sample(("user", "Convert the speech to text.\n<|audio|>"), ("assistant", "hello"), audios=["a"])
    conversation = Conversation.from_json(line, "asr.jsonl:1")
    assert conversation.tts_rewrite() == conversation
