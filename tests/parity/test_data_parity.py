"""Rendered conversations equal the published ones, token for token and label for label."""

import json
from pathlib import Path

import numpy as np
import pytest

from vita_audio_pl.interleave import IntervalRatio
from vita_audio_pl.text import Conversation, Renderer, RenderOptions, TextTokenizer, conversation_to_turns

HERE = Path(__file__).parent / "data"
CODES = {path: np.array(codes) for path, codes in json.loads((HERE / "audio_codes.json").read_text()).items()}
CONVERSATIONS = [
    Conversation.from_json(line, f"samples.jsonl:{number}")
    for number, line in enumerate((HERE / "samples.jsonl").read_text(encoding="utf-8").splitlines(), 1)
]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation.id)
@pytest.mark.parametrize("ratio", ["1_10_4_10", "1_4_3_8_4_10"])
def test_a_conversation_renders_as_published(ratio, conversation):
    tokenizer = TextTokenizer.load(HERE / "tokenizer.json")
    published = json.loads((HERE / f"expected_{ratio}.json").read_text(encoding="utf-8"))
    options = RenderOptions(IntervalRatio.of(published["text_audio_interval_ratio"]))
    renderer = Renderer(tokenizer.vocabulary(16384), tokenizer, options)
    turns = conversation_to_turns(conversation, tokenizer, [CODES[path] for path in conversation.audios])

    rendered = renderer.render(turns)

    expected = published["results"][conversation.id]
    assert rendered.ids.tolist() == expected["input_ids"]
    assert rendered.labels.tolist() == expected["labels"]
    assert tokenizer.written_out(rendered.ids, renderer.vocabulary) == expected["text"]
