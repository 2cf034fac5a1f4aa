"""Bench items: what is asked and expected, and what is refused."""

import json

import pytest

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.items import check_audio, check_items, read_samples


def turn(role, content):
    return {"role": role, "content": content}


SAMPLES = {
    "asr": {
        "id": "a1",
        "messages": [turn("user", "Convert the speech to text.\n<|audio|>"), turn("assistant", "the red cow")],
        "audios": ["q.wav"],
    },
    "tts": {
        "id": "t1",
        "messages": [turn("user", "Convert the text to speech.\nthe red cow"), turn("assistant", "<|audio|>")],
        "audios": ["a.wav"],
    },
    "sqa": {
        "id": "s1",
        "messages": [turn("user", "<|audio|>"), turn("assistant", "in the barn\n<|audio|>")],
        "audios": ["q.wav", "a.wav"],
    },
    "text": {"id": "x1", "messages": [turn("user", "where is it"), turn("assistant", "in the barn")]},
}


def write(path, *samples):
    path.write_text("".join((s if isinstance(s, str) else json.dumps(s)) + "\n" for s in samples))
    return path


@pytest.mark.parametrize(
    ("task", "reference", "asked", "expected"),
    [
        ("asr", "the red cow", ["q.wav"], None),
        ("tts", "the red cow", [], "a.wav"),
        ("sqa", "in the barn", ["q.wav"], "a.wav"),
        ("text", "in the barn", [], None),
    ],
)
def test_answer_is_taken_out_of_the_prompt(tmp_path, task, reference, asked, expected):
    (item,) = read_samples(write(tmp_path / "s.jsonl", SAMPLES[task]), task, tmp_path)
    assert item.references == (reference,)
    assert [audio.rpartition("/")[2] for audio in item.prompt.audios] == asked
    assert (item.spoken_reference and item.spoken_reference.name) == expected
    assert all(message.role != "assistant" for message in item.prompt.messages)


def test_several_accepted_answers_are_read(tmp_path):
    (item,) = read_samples(
        write(tmp_path / "s.jsonl", SAMPLES["sqa"] | {"answers": ["the barn", "barn"]}), "sqa", tmp_path
    )
    assert item.references == ("the barn", "barn")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["{not json"], r"s\.jsonl:1: not JSON"),
        (["[1]"], r"s\.jsonl:1: a sample must be an object"),
        ([{"id": "x", "messages": [turn("user", "hello")]}], "last turn must be the assistant's"),
        ([SAMPLES["text"] | {"answers": "barn"}], "must be a list of texts"),
        ([SAMPLES["asr"], SAMPLES["asr"]], "'a1' occurs twice"),
        ([SAMPLES["text"] | {"answers": [" "]}], "'x1' has an empty reference"),
        ([], "holds no utterances"),
    ],
)
def test_unusable_bench_is_refused_in_one_sentence(tmp_path, lines, sentence):
    with pytest.raises(UserError, match=sentence):
        check_items(read_samples(write(tmp_path / "s.jsonl", *lines), "asr", tmp_path), "s.jsonl")


def test_missing_recordings_are_refused_before_the_first_answer(tmp_path):
    items = read_samples(write(tmp_path / "s.jsonl", SAMPLES["asr"], SAMPLES["sqa"]), "asr", tmp_path)
    with pytest.raises(UserError, match=r"2 recordings of the bench are missing, the first is .*q\.wav"):
        check_audio(items)


def test_missing_bench_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist; check bench.root"):
        read_samples(tmp_path / "none.jsonl", "asr", tmp_path)
