"""One bad sample never stops a corpus: what can be used is used, the rest is counted, named and told."""

import json
import time
from pathlib import Path

import pytest
from toy_codec import N_CODES, LoudnessCodec
from toy_corpus import toy_tokenizer
from troublesome import CASES, PYTHONS_WORDS, Case

from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.readers import make_reader
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import load_audio
from vita_audio_pl.text import AudioCodes, TextTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return toy_tokenizer()


def job_of(case: Case, folder: Path, tokenizer: TextTokenizer) -> TokenizeJob:
    (folder / "corpus").mkdir()
    for name, data in case.files.items():
        (folder / "corpus" / name).write_bytes(data)
    facts = {"name": "loudness", "fingerprint": "loudness-1", "codes_per_second": 12.5, "codebook_size": N_CODES}
    reader = make_reader(folder / "corpus", case.task, case.reader, "the recipe")
    out = folder / "shards"
    return TokenizeJob("corpus", case.task, reader, tokenizer, LoudnessCodec, facts, load_audio, out)


def answers(source: PreparedSource, tokenizer: TextTokenizer) -> dict[str, tuple[str, float]]:
    """Last answer of each sample, and the seconds of its audio, by id; paths in ids without their folders."""
    found = {}
    for number in range(len(source)):
        sample = source.read(number)
        text, codes = "", 0
        for turn in sample.turns:
            pieces = [
                ("<|audio|>", s.codes.size) if isinstance(s, AudioCodes) else (tokenizer.decode(s.ids.tolist()), 0)
                for s in turn.segments
            ]
            codes += sum(size for _, size in pieces)
            text = "".join(piece for piece, _ in pieces)
        name = sample.id.rpartition("/")[2] if ":" in sample.id else sample.id
        assert name not in found
        found[name] = (text, codes / 12.5)
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_can_be_used_is_used_and_the_rest_is_named(name: str, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    case = CASES[name]
    job = job_of(case, tmp_path, tokenizer)
    start = time.process_time()
    if case.used:
        manifest = prepare_source(job)
        assert manifest is not None and manifest.report["skipped"] == case.skipped
        found = answers(PreparedSource(job.out), tokenizer)
        assert {id: text for id, (text, _) in found.items()} == case.used
        assert {id: found[id][1] for id in case.seconds} == case.seconds
    else:
        with pytest.raises(UserError, match="no sample of 'corpus' could be used:\n"):
            prepare_source(job)
    assert time.process_time() - start < 10  # nothing takes long, however large
    named = [json.loads(line) for line in (job.out / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    reasons = [line["reason"] for line in named]
    assert {reason: reasons.count(reason) for reason in reasons} == case.skipped
    for line in named:
        assert not line["reason"].startswith("unexpected") and "trace" not in line
        assert not PYTHONS_WORDS.search(line["problem"])
        assert line["where"][:50].rpartition("/")[2] in line["problem"] and len(line["problem"]) <= 1000
