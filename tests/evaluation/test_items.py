"""Bench items: what is asked and expected, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.benches.bench import BenchConfig
from vita_audio_pl.evaluation.benches.readers import READERS
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
        ([SAMPLES["text"] | {"answers": [" "]}], "1 of 1 are: utterance 'x1'"),
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


def asr(id, text, audio="q.wav"):
    return SAMPLES["asr"] | {"id": id, "messages": [SAMPLES["asr"]["messages"][0], turn("assistant", text)],
                             "audios": [audio]}  # fmt: skip


@pytest.mark.parametrize(
    ("normaliser", "empty"),
    [
        ("plain", "..."),
        ("plain", "\U0001f44d"),
        ("whisper_english", "..."),
        ("whisper_english", "uh um"),
        ("whisper_english", "(laughs)"),
        ("mixed", "。"),
    ],
)
def test_references_that_normalise_to_nothing_are_named_before_the_first_answer(tmp_path, normaliser, empty):
    write(tmp_path / "s.jsonl", asr("good", "the red cow"), asr("u7", empty), asr("u9", empty))
    bench = BenchConfig("b", root=str(tmp_path), tasks={"asr": {"test": "s.jsonl"}}, normaliser=normaliser)
    with pytest.raises(UserError, match=r"normalised 2 of 3 are: utterance 'u7' \(.*\), 'u9' .*bench.normaliser"):
        bench.items("asr", "test")


TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])).filter(str.strip) | st.sampled_from(
    ["red\u2028bird", "a\x0cb", "a\x85b", "\ufefftext", "\u200fشمس", "a\u3000b"]
)


@given(texts=st.lists(TEXT, min_size=1, max_size=4), end=st.sampled_from(["\n", "\r\n", "\r\r\n"]), mark=st.booleans(),
       escaped=st.booleans())  # fmt: skip
def test_bench_files_are_read_as_they_are_whatever_ends_their_lines(tmp_path_factory, texts, end, mark, escaped):
    path = tmp_path_factory.getbasetemp() / "odd.jsonl"
    rows = [json.dumps(SAMPLES["text"] | {"id": f"u{n}", "answers": [text]}, ensure_ascii=escaped)
            for n, text in enumerate(texts)]  # fmt: skip
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + "".join(row + end for row in rows).encode())
    assert [item.references[0] for item in read_samples(path, "text", path.parent)] == texts


def test_kaldi_fields_end_at_blanks_and_tabs_only(tmp_path):
    (tmp_path / "wav.scp").write_text("u1 \u00a0a.wav\nu\x0c2\tb c.wav\n")
    (tmp_path / "text").write_text("u1 the red\u2028bird\x0cflies\nu\x0c2 the\u3000bird\n")
    items = list(READERS["kaldi"](tmp_path, "asr", tmp_path))
    assert [(item.id, item.references[0], item.source.name) for item in items] == [
        ("u1", "the red\u2028bird\x0cflies", "\u00a0a.wav"), ("u\x0c2", "the\u3000bird", "b c.wav"),
    ]  # fmt: skip


def test_csv_with_a_mark_and_quoted_ends_of_lines_keeps_every_row(tmp_path):
    (tmp_path / "q.csv").write_bytes(
        b'\xef\xbb\xbfaudio,answer\r\r\na.wav,"the\n\nbird"\r\r\n\r\nb.wav,x\xe2\x80\xa8y\r\n'
    )
    items = list(READERS["questions"](tmp_path / "q.csv", "sqa", tmp_path))
    assert [item.references for item in items] == [("the\n\nbird",), ("x\u2028y",)]


@pytest.mark.parametrize("id", ["x\ud83d", "../../x", "a b/c", "", "\U0001f600" * 300, "0", "\x00"])
def test_odd_ids_are_used_in_a_form_that_can_be_stored(tmp_path, id):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(asr(id, "the cow")) + "\n")
    (item,) = check_items(read_samples(path, "asr", tmp_path), "s")
    item.id.encode()
    assert item.id == (id or f"{path}:1").encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize(
    ("reader", "name", "content", "sentence"),
    [
        ("samples", "s", json.dumps(asr("1", "x", "data:audio/wav;base64,UklG")), r"s:1: the recording is the address data:aud"),
        ("samples", "s", json.dumps(asr("1", "x", "data:audio/wav;base64," + "Ukl" * 3000)), "write it to a file"),
        ("samples", "s", json.dumps(asr("1", "x", "https://host/a.wav")), "is the address https://host"),
        ("samples", "s", json.dumps(asr("1", "x", "x" * 300)), "is none that a file can have"),
        ("samples", "s", json.dumps(asr("1", "x", "a\ud83d")), "is none that a file can have"),
        ("samples", "s", json.dumps(asr("1", "x", "a\0b")), "is none that a file can have"),
        ("samples", "s", json.dumps(asr("1", "x") | {"answers": ["a\ud83d"]}), "'1' expects an unpaired surrogate"),
        ("samples", "s", json.dumps(asr("1", "x") | {"answers": [None]}), "must be a list of texts"),
        ("samples", "s", "[" * 100_000, "s:1: not JSON"),
        ("samples", "s", '{"id": "1", "id": "2"}', "the key 'id' comes twice"),
        ("samples", "s", "你好".encode("gbk"), "s:1: the line is not UTF-8"),
        ("questions", "q.jsonl", '{"audio": 5, "answers": ["x"]}', "a recording must be given as a path"),
        ("questions", "q.jsonl", '{"audio": "a.wav", "answers": [5]}', "must be a list of texts"),
        ("questions", "q.jsonl", '{"audio": "a.wav", "answers": ["x"], "id": [1]}', "'id' must be a name or a number"),
        ("questions", "q.csv", 'audio,answer\na.wav,"the', "not CSV"),
        ("questions", "q.csv", "audio,answer\na.wav," + "x" * 200_000, "not CSV"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_a_sentence_that_names_it(tmp_path, reader, name, content, sentence):
    path = tmp_path / name
    path.write_bytes((content if isinstance(content, bytes) else content.encode()) + b"\n")
    with pytest.raises(UserError, match=sentence):
        check_items(READERS[reader](path, "asr", tmp_path), "s")


def test_files_of_another_operating_system_are_no_part_of_a_bench(tmp_path):
    place = tmp_path / "clean" / "61" / "70968"
    place.mkdir(parents=True)
    (place / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN\n")
    for name in ("._61-70968.trans.txt", "._61-70968-0000.flac"):
        (place / name).write_bytes(b"\x00\x05\x16\x07")
    assert [item.id for item in READERS["librispeech"](tmp_path / "clean", "asr", tmp_path)] == ["61-70968-0000"]
