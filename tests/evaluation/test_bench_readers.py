"""Public benches as their publishers lay them out, in miniature; every bench file names figures and a known reader."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.benches.bench import BenchConfig
from vita_audio_pl.evaluation.benches.readers import READERS
from vita_audio_pl.evaluation.items import check_items
from vita_audio_pl.evaluation.scores.normalisers import get_normaliser
from vita_audio_pl.evaluation.settings import EvaluateConfig

BENCHES = sorted(path.stem for path in (asset_dir("conf") / "bench").glob("*.yaml"))


def put(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def lay_out(root, name):
    """Writes a bench of two utterances; returns (place, task, [(id, audio or None, reference)])."""
    if name == "librispeech":
        put(root / "test-clean/61/70968/61-70968.trans.txt", "61-70968-0000 HE BEGAN\n61-70968-0001 GIVE IT\n")
        audio = [root / f"test-clean/61/70968/61-70968-000{n}.flac" for n in (0, 1)]
        return "test-clean", "asr", [("61-70968-0000", audio[0], "HE BEGAN"), ("61-70968-0001", audio[1], "GIVE IT")]
    if name == "libritts":
        put(root / "test-clean/61/70968/61_a.normalized.txt", "He began.\n")
        return "test-clean", "tts", [("61_a", None, "He began.")]
    if name == "kaldi":
        put(root / "test_net/wav.scp", "u1 wav/u1.wav\nu2 /data/u2.wav\n")
        put(root / "test_net/text", "u1 你 好\nu2 再见\n")
        return "test_net", "asr", [("u1", root / "test_net/wav/u1.wav", "你 好"), ("u2", "/data/u2.wav", "再见")]
    if name == "aishell":
        lines = "BAC009S0764W0121 甚至 出现\nBAC009S0002W0122 别 处\n"  # the second one's speaker is in another split
        put(root / "transcript/aishell_transcript_v0.8.txt", lines)
        audio = root / "wav/test/S0764/BAC009S0764W0121.wav"
        put(audio)
        return "wav/test", "asr", [("BAC009S0764W0121", audio, "甚至出现")]
    if name == "fleurs":
        put(
            root / "test.tsv",
            "7\t11.wav\tHe said.\the said\th e\t1\tMALE\n7\t12.wav\tHe said.\the said\th\t1\tFEMALE\n",
        )
        return "test.tsv", "asr", [(f"1{n}", root / f"audio/test/1{n}.wav", "he said") for n in (1, 2)]
    if name == "seed_tts":
        put(root / "en/meta.lst", "c1|We asked.|prompt-wavs/c1.wav|Get the trust fund.\n")
        return "en/meta.lst", "tts", [("c1", root / "en/prompt-wavs/c1.wav", "Get the trust fund.")]
    if name == "questions":
        rows = [
            {"audio": "wav/q1.wav", "answers": ["Paris", "the city"]},
            {"id": "x", "audio": "/q2.wav", "answer": "9"},
        ]
        put(root / "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return "test.jsonl", "sqa", [("q1", root / "wav/q1.wav", "Paris"), ("x", "/q2.wav", "9")]
    sample = {"id": "s", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    put(root / "text.jsonl", json.dumps(sample) + "\n")
    return "text.jsonl", "text", [("s", None, "hello")]


@pytest.mark.parametrize("name", READERS)
def test_reader_finds_ids_recordings_and_references(tmp_path, name):
    place, task, expected = lay_out(tmp_path, name)
    items = list(READERS[name](tmp_path / place, task, tmp_path))
    assert [(i.id, str(i.source) if i.source else None, i.references[0]) for i in items] == [
        (id, str(audio) if audio else None, text) for id, audio, text in expected
    ]


def test_several_answers_and_csv_are_read(tmp_path):
    put(tmp_path / "q.csv", "id,audio,answers\n1,a.wav,Paris | the city\n")
    (item,) = READERS["questions"](tmp_path / "q.csv", "sqa", tmp_path)
    assert item.references == ("Paris", "the city")


def test_voice_prompt_goes_into_the_system_turn(tmp_path):
    place, task, _ = lay_out(tmp_path, "seed_tts")
    (item,) = READERS["seed_tts"](tmp_path / place, task, tmp_path)
    assert [(m.role, m.content) for m in item.prompt.messages] == [
        ("system", "Your Voice: <|audio|>\n"), ("user", "Convert the text to speech.\nGet the trust fund."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "text", "sentence"),
    [
        ("kaldi", "wav.scp", "u1 sox a.wav -t wav - |\n", "is a command, not a file"),
        ("kaldi", "text", "u9 hello\n", "'u9' has a transcript but is not in wav.scp"),
        ("seed_tts", "meta.lst", "a|b\n", r"meta\.lst:1: expected id"),
        ("fleurs", "test.tsv", "a\tb\n", r"test\.tsv:1: expected tab-separated"),
        ("questions", "test.jsonl", '{"audio": "a.wav"}\n', r"test\.jsonl:1: a question needs 'audio' and 'answers'"),
        ("questions", "test.jsonl", '{"audio": "a.wav", \n', r"test\.jsonl:1: not JSON"),
        ("librispeech", "nothing", "", r"holds no \*/\*/\*\.trans\.txt; check bench\.root"),
    ],
)
def test_broken_bench_is_named_in_one_sentence(tmp_path, name, file, text, sentence):
    if name == "kaldi":
        put(tmp_path / "wav.scp", "u1 u1.wav\n")
        put(tmp_path / "text", "u1 hello\n")
    put(tmp_path / file, text)
    place = tmp_path / file if name in ("seed_tts", "fleurs", "questions") else tmp_path
    with pytest.raises(UserError, match=sentence):
        list(READERS[name](place, "asr", tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "text", "sentence"),
    [
        ("kaldi", "test_net/wav.scp", "u1 u1.wav\nu2 u2.wav\nu3 u3.wav\n", "1 utterances have no transcript, .*'u3'"),
        ("aishell", "wav/test/S0764/BAC009S0764W0122.wav", "", "1 utterances have no transcript, .*W0122'"),
        ("librispeech", "test-clean/61/70968/61-70968-0002.flac", "", "1 utterances have no transcript, .*-0002'"),
        ("libritts", "test-clean/61/70968/61_b.wav", "", r"1 utterances have no normalized\.txt, .*'61_b'"),
        (
            "aishell",
            "transcript/aishell_transcript_v0.8.txt",
            "BAC009S0764W0121 甚至\nBAC009S0764W0122 别\n",
            "1 utterances have no recording, .*W0122'",
        ),
    ],
)
def test_utterances_that_would_be_missing_from_the_denominator_are_refused(tmp_path, name, file, text, sentence):
    place, task, _ = lay_out(tmp_path, name)
    put(tmp_path / file, text)
    with pytest.raises(UserError, match=sentence):
        list(READERS[name](tmp_path / place, task, tmp_path))


@pytest.fixture(scope="module")
def hydra_conf():
    register_schema("evaluate", EvaluateConfig)
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        yield


@pytest.mark.parametrize("bench", BENCHES)
def test_every_bench_file_fits_the_schema(hydra_conf, bench):
    config = to_dataclass(compose("evaluate", [f"bench={bench}", "compare=[a,b]"]))
    assert config.bench.name == bench and config.bench.title
    for figure in config.bench.published:
        assert figure.split in config.bench.tasks[figure.task]
        assert config.bench.incomparable, "published figures need a word on what makes them hard to compare"


@pytest.mark.parametrize("suite", ["demo", "demo_smoke"])
def test_every_suite_fits_its_bench(hydra_conf, suite):
    config = to_dataclass(compose("evaluate", [f"suite={suite}", "run_name=r"]))
    for entry in config.suite.evaluations:
        assert all((entry.split or "test") in config.bench.tasks[task] for task in entry.tasks)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "which model?"),
        (["suite=demo"], "give run_name"),
        (["task=tss", "compare=[a,b]"], "choose one of asr, tts, sqa, text, all"),
        (["mode=fast", "compare=[a,b]"], "choose one of turbo"),
        (["limit=0", "compare=[a,b]"], "limit is 0: it must be at least 1"),
        (["compare=[a]"], "two result folders"),
        (["bench.format=xml", "compare=[a,b]"], "bench.format is 'xml'"),
        (["bench.unit=phoneme", "compare=[a,b]"], "choose one of word, character"),
    ],
)
def test_settings_that_cannot_be_are_refused(hydra_conf, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        to_dataclass(compose("evaluate", overrides))


def test_a_bench_without_the_task_or_split_says_what_it_has():
    bench = BenchConfig(name="b", tasks={"asr": {"test": "t.jsonl"}})
    with pytest.raises(UserError, match="has no task 'tts'; it has asr"):
        bench.items("tts", "test")
    with pytest.raises(UserError, match="has no split 'dev' for asr; it has test"):
        bench.items("asr", "dev")


ODD = [b"\x00", b"\xff", b"\n", b"\r", b"\r\r\n", b"\xe2\x80\xa8", b"\x0c", b"\t", b" ", b"|", b'"', b"\\ud83d", b"{", b"[", b"9" * 400,
       b"NaN", b"null", b"../", b"/", b"data:", b"x" * 300, b"\xef\xbb\xbf"]  # fmt: skip


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(READERS)),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 8), st.sampled_from(ODD) | st.binary(max_size=3)), max_size=4
    ),
    data=st.data(),
)
def test_a_mutated_bench_is_items_or_a_sentence(tmp_path_factory, name, edits, data):
    root = tmp_path_factory.getbasetemp() / f"mutated-{name}"
    place, task, _ = lay_out(root, name)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix not in (".wav", ".flac"))
    path = data.draw(st.sampled_from(files))
    text = path.read_bytes()
    for where, cut, put_in in edits:
        at = int(where * len(text))
        text = text[:at] + put_in + text[at + cut :]
    path.write_bytes(text)
    normalise = get_normaliser("plain")
    try:
        items = check_items(READERS[name](root / place, task, root), name, normalise)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    else:
        for item in items:
            json.dumps([item.id, item.references], ensure_ascii=False).encode()
            assert normalise(item.references[0])
            assert all(len(part.encode()) <= 255 for audio in item.prompt.audios for part in Path(audio).parts)
