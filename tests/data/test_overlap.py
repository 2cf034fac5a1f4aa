"""Samples that come twice, and samples of test sets among those that are trained on."""

import json

import numpy as np
import pytest
import soundfile
from toy_codec import RATE
from toy_corpus import toy_job, toy_tokenizer

from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.tools.overlap import SAME_AUDIO, SAME_TEXT, find_overlap, prints_of
from vita_audio_pl.errors import UserError

LONG = "the red cow and the blue duck live on the farm"
SAMPLES = {
    "asr": [
        ("a", LONG, 1, 2.0),
        ("b", "the green sheep has two cups in the river", 2, 2.0),
        ("a again", "another text for the recording of the first", 1, 2.0),
        ("c", "red", 3, 0.4),
        ("c again", "red", 3, 0.4),  # too short to tell
    ],
    "test": [
        ("same words", f"{LONG.upper()}!", 4, 2.04),
        ("same words, slowly", LONG, 5, 3.0),
        ("b of the test", "a transcript of its own for this recording", 2, 2.0),
    ],
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreparedSource]:
    folder, tokenizer = tmp_path_factory.mktemp("overlap"), toy_tokenizer()
    (folder / "raw").mkdir()
    for task, samples in SAMPLES.items():
        lines = []
        for name, text, seed, seconds in samples:
            loud = np.repeat(np.random.default_rng(seed).random(60), 640)[: int(seconds * RATE)]
            soundfile.write(folder / f"raw/{task} {name}.wav", (loud * np.sin(np.arange(len(loud)) / 5)), RATE)
            heard = {"role": "user", "content": "Convert the speech to text.\n<|audio|>"}
            messages = [heard, {"role": "assistant", "content": text}]
            lines.append(json.dumps({"id": name, "messages": messages, "audios": [f"{task} {name}.wav"]}))
        (folder / f"raw/{task}.jsonl").write_text("\n".join(lines))
        prepare_source(toy_job(folder / "raw", folder / "shards", task, tokenizer))
    return {task: PreparedSource(folder / "shards" / task) for task in SAMPLES}


def test_what_comes_twice_and_what_a_test_set_has_is_found_and_can_be_left_out(
    sources: dict[str, PreparedSource],
) -> None:
    tokenizer = toy_tokenizer()
    mine, tests = (prints_of(sources[task], tokenizer) for task in ("asr", "test"))
    itself, shared = (list(find_overlap(mine, other)) for other in (mine, tests))
    assert [(one.id, one.other_id, one.kind) for one in itself] == [("a again", "a", SAME_AUDIO)]
    assert [(one.id, one.other_id, one.kind) for one in shared] == [
        ("a", "same words", SAME_TEXT),
        ("b", "b of the test", SAME_AUDIO),
    ]
    sources["asr"].quarantine({one.number: str(one) for one in (*itself, *shared)})
    left = prints_of(PreparedSource(sources["asr"].folder), tokenizer)
    assert not [*find_overlap(left, left), *find_overlap(left, tests)]
    assert PreparedSource(sources["asr"].folder).quarantined[0] == "a: the same text, as long as same words of 'test'"


def test_audio_of_another_codec_is_not_compared(sources: dict[str, PreparedSource]) -> None:
    tokenizer = toy_tokenizer()
    mine, tests = (prints_of(sources[task], tokenizer) for task in ("asr", "test"))
    tests.source.manifest.codec["fingerprint"] = "loudness-2"
    with pytest.raises(UserError, match="different codecs"):
        list(find_overlap(mine, tests))
