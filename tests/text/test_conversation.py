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
        ('{"messages": [{"content": "hi"}]}', "message 1 has no 'role'"),
        ('{"messages": [{"from": "human", "content": "hi"}]}', "message 1 has no 'value'"),
        ('{"messages": [{"role": null, "content": "hi"}]}', "message 1 has the role null"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "part 1: its 'text' is null, not text"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "is of the type 'image_url'"),
        ('{"messages": [{"role": "user", "content": NaN}]}', "its 'content' is the number nan, not text"),
        ('{"messages": [{"role": "user", "content": ["a", ["b"]]}]}', "part 2 must be text or an object .* not a list"),
        ('{"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}', "calls a tool"),
        ('{"conversations": [{"from": "human", "value": "<audio>"}]}', r"1 <\|audio\|> for 0 audio paths"),
        ('{"messages": [1], "conversations": [1]}', "both 'messages' and 'conversations'"),
        ('{"messages": [{"role": "user", "content": "a"}], "messages": []}', "the key 'messages' comes twice"),
        ('{"messages": [{"role": "user", "content": [{"type": "audio", "audio": 3}]}]}', "a path or a data URI"),
        (sample(("user", "hi"), id=True), "'id' must be a name"),
        (sample(("user", "hi"), id=1.5), "'id' must be a name"),
        (sample(("user", "hi"), ("tool", "x")), "message 2 has the role 'tool'; use one of system, user, assistant"),
        (sample(("user", "hi"), ("assistant", " \n")), r"message 2 \(assistant\) is empty"),
        (sample(("user", "<|audio|><|audio|>"), audios=["a.wav"]), r"2 <\|audio\|> for 1 audio paths"),
        (sample(("user", "<|audio|>")), r"1 <\|audio\|> for 0 audio paths"),
        (sample(("user", "hi"), audios=["a.wav"]), r"0 <\|audio\|> for 1 audio paths"),
        (sample(("user", "<|audio|>"), audios="a.wav"), "'audios' must be a list of paths"),
        (sample(("user", "<|audio|>"), audios=[None]), "'audios' must be a list of paths"),
        (sample(("user", "a"), ("assistant", "<|audio|> <|audio|>"), audios=["a", "b"]), "answer with 2 audios"),
        (sample(("user", "half a face \ud83d")), "an unpaired surrogate"),
        (sample(("user", "hi"), id=[1]), "'id' must be a name or a number, not a list"),
        (sample(("user", "hi"), ("assistant", "\u200b\ufeff\u0301\0")), r"message 2 \(assistant\) is empty"),
        (sample(("system", "a"), ("user", "hi"), ("system", "b")), "two system messages"),
        (sample(("system", "a"), ("user", "hi"), system="b"), "two system messages"),
        ("null", "must be an object with 'messages', not null"),
    ],
)
def test_bad_lines_are_refused_by_name(line, sentence):
    with pytest.raises(UserError, match=sentence) as failure:
        Conversation.from_json(line, "qa.jsonl:3")
    assert str(failure.value).startswith("qa.jsonl:3: ")
    assert "\n" not in str(failure.value)


HI, ANSWER = ("user", "hi <|audio|>"), ("assistant", "it sings")


@pytest.mark.parametrize(
    ("value", "messages", "audios"),
    [
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "what is "}, {"type": "text", "text": "red"}]}
                ]
            },
            [("user", "what is red")],
            (),
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "be brief"},
                    {"role": "user", "content": ["hi ", {"type": "audio", "audio": "a.wav"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "it sings"}]},
                ]
            },
            [("system", "be brief"), HI, ANSWER],
            ("a.wav",),
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "input_audio", "input_audio": {"data": "UklG", "format": "mp3"}}],
                    },
                    {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "b.wav"}}, "<|audio|>"]},
                    {"role": "assistant", "content": [{"type": "audio"}, "it sings"]},
                ],
                "audios": ["c.wav", "d.wav"],
            },
            [("user", "<|audio|>"), ("user", "<|audio|><|audio|>"), ("assistant", "<|audio|>it sings")],
            ("data:audio/mp3;base64,UklG", "b.wav", "c.wav", "d.wav"),
        ),
        (
            {
                "system": "be brief",
                "conversations": [{"from": "human", "value": "hi <audio>"}, {"from": "gpt", "value": "it sings"}],
                "audio": "a.wav",
            },
            [("system", "be brief"), HI, ANSWER],
            ("a.wav",),
        ),
        (
            {"messages": [{"role": "user", "content": "hi <audio>"}], "audios": ["a.wav"]},
            [HI],
            ("a.wav",),
        ),
        (
            {"messages": [{"role": "user", "content": "what is <audio>?"}], "audios": None},
            [("user", "what is <audio>?")],
            (),
        ),
        (
            {
                "messages": [{"role": "user", "content": "hi <|audio|>"}, {"role": "assistant", "content": "<audio>"}],
                "audio": ["a.wav"],
            },
            [HI, ("assistant", "<audio>")],
            ("a.wav",),
        ),
        (
            {"messages": [{"role": "system", "content": " "}, {"role": "user", "content": "a"}], "system": None},
            [("user", "a")],
            (),
        ),
    ],
)
def test_messages_of_other_styles_are_read_as_what_they_mean(value, messages, audios):
    conversation = Conversation.from_json(json.dumps(value), "x.jsonl:1")
    assert [(message.role, message.content) for message in conversation.messages] == messages
    assert conversation.audios == audios


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


@pytest.mark.parametrize("text", ["[1, 2, 3]", '["yes"]', '[{"a": 1}]', "[]", "[1, 2"])
def test_an_answer_of_a_pair_may_be_words_that_are_json(text):
    asked = {"messages": [{"role": "user", "content": "a list, please"}], "rejected": "no"}
    pair = Conversation.pair_from_json({**asked, "chosen": text}, "here")
    assert pair.messages[1].content == text
    message = {"role": "assistant", "content": "yes"}
    for given in (message, [message], json.dumps([message]), ["yes"]):
        assert Conversation.pair_from_json({**asked, "chosen": given}, "here").messages[1].content == "yes"
    with pytest.raises(UserError, match="'chosen' must be one answer"):
        Conversation.pair_from_json({**asked, "chosen": json.dumps([message] * 2)}, "here")
