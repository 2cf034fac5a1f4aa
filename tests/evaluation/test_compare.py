"""Results stand side by side only where model, bench and protocol allow it, over the utterances that both have."""

import json
from dataclasses import replace

import pytest
from test_runner import SENTENCES, SpellingToolbox, evaluation, run_all

from tests.bit_flips import flipped, some_bits
from vita_audio_pl.config.decoding import Sampling
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.items import tts_item
from vita_audio_pl.evaluation.records import Measured, Transcript
from vita_audio_pl.evaluation.runs.jobs import Decoding
from vita_audio_pl.evaluation.runs.results import write_results
from vita_audio_pl.evaluation.scores.compare import compare_modes, compare_results
from vita_audio_pl.evaluation.scores.normalisers import plain
from vita_audio_pl.evaluation.scores.scoring import Scoring
from vita_audio_pl.reporting.results.files import read_result
from vita_audio_pl.reporting.tables import comparison_sentences

VANILLA = Decoding("vanilla", (8192, 0))


class Stammering(SpellingToolbox):
    """Is misheard once in the last six of the first half's answers, and in all of the second half."""

    def transcribe(self, model, judge, answers, voices):
        heard = super().transcribe(model, judge, answers, voices)
        return [Transcript(h.id, f"{h.text} what" if int(h.id) >= 6 else h.text, h.seconds) for h in heard]


def made(folder, toolbox=SpellingToolbox, **settings):
    """The folder of one result below `folder/bench`."""
    job = replace(evaluation(folder, **settings), place=folder / "bench" / "sft" / "test")
    (record,) = run_all([job], toolbox(folder / "log"))
    write_results(record, Scoring(plain), {})
    return job.folder


def test_a_mode_is_compared_with_vanilla_over_the_utterances_that_both_have(tmp_path):
    vanilla = made(tmp_path, Stammering, decoding=VANILLA)
    boost = made(tmp_path, limit=12)
    (found,) = compare_modes(tmp_path / "bench")
    assert json.loads((tmp_path / "bench/comparisons.json").read_text())["comparisons"] == [found]
    speech = found["metrics"]["speech_wer"]
    # ids 4 and 9 are silent in both, ids 6 and 7 say a wrong number, ids 6, 7, 8, 10, 11 stammer in Vanilla
    assert (speech["utterances"], speech["first"], speech["second"]) == (
        12,
        pytest.approx(17 / 60, abs=1e-5),
        pytest.approx(0.2),
    )
    assert speech["value"] == pytest.approx(-5 / 60, abs=1e-5)
    figures = [json.loads((folder / "result.json").read_text()) for folder in (vanilla, boost)]
    assert (found["first"]["key"], found["second"]["key"]) == tuple(result["key"] for result in figures)
    assert speech["second"] == figures[1]["metrics"]["speech_wer"]["value"]
    assert speech["first"] != figures[0]["metrics"]["speech_wer"]["value"]  # which is over all 24


def test_of_several_baselines_the_one_with_most_in_common_is_taken(tmp_path):
    for limit in (3, 12, 7):
        made(tmp_path, decoding=VANILLA, limit=limit)
    made(tmp_path, limit=7)
    (found,) = compare_modes(tmp_path / "bench")
    assert found["utterances"] == 7 and found["first"]["utterances"] in (7, 12)


def test_drawn_answers_are_compared_with_those_of_vanilla_that_were_drawn_alike(tmp_path):
    drawn = [Sampling(temperature=0.7, seed=seed) for seed in (0, 1)]
    made(tmp_path, decoding=replace(VANILLA, sampling=drawn[0]))
    boost = Decoding("boost", (1, 10, 4, 10))
    greedy = made(tmp_path, decoding=boost)
    assert compare_modes(tmp_path / "bench") == []
    alike, _ = (made(tmp_path, decoding=replace(boost, sampling=sampling)) for sampling in drawn)
    (found,) = compare_modes(tmp_path / "bench")
    assert found["mode"] == "boost+sampled" and found["differs"] == ["pattern"]
    assert found["second"]["key"] == json.loads((alike / "result.json").read_text())["key"]
    assert [read_result(folder / "result.json").mode for folder in (greedy, alike)] == ["boost", "boost+sampled"]


@pytest.mark.parametrize(
    "other", [{"model": "n"}, {"listening": "another"}, {"items": tuple(tts_item(str(n), "x") for n in range(24))}]
)
def test_modes_of_another_model_judge_or_bench_are_not_compared(tmp_path, other):
    made(tmp_path, decoding=VANILLA)
    made(tmp_path, **other)
    assert compare_modes(tmp_path / "bench") == []


def test_two_models_may_be_compared_and_the_difference_is_stated(tmp_path):
    one, two = made(tmp_path), made(tmp_path, Stammering, model="n", limit=10)
    found = compare_results(one, two)
    assert found["utterances"] == 10 and "model_digest" in found["differs"]


class Rounding(SpellingToolbox):
    """A quantised model: of 10 answers the first writes another code, and each of its drafts costs and earns less."""

    cost, kept, measured = 0.5, 3, Measured(5, "EPYC")

    def answer(self, model, decoding, batch_size, items):
        answers, kernels = super().answer(model, decoding, batch_size, items)
        told = {"compute_seconds": self.cost, "drafted": 4, "accepted": self.kept} | self.measured._asdict()
        codes = [(122, *a.codes[1:]) if a.id == "0" and decoding.quantize else a.codes for a in answers]
        return [replace(a, codes=c, **told) for a, c in zip(answers, codes, strict=True)], kernels


class Exact(Rounding):
    cost, kept = 1.0, 4


def test_quantised_weights_make_a_result_of_their_own_and_what_they_changed_is_counted(tmp_path):
    boost = Decoding("boost", (1, 10, 4, 10), "greedy")
    exact = made(tmp_path, Exact, decoding=boost, limit=10)
    small = made(tmp_path, Rounding, decoding=replace(boost, quantize="int8"), limit=10)
    made(tmp_path, decoding=VANILLA, limit=10)
    found = compare_results(exact, small)
    tokens = sum(row["tokens"] for row in read_result(exact / "result.json").utterances)
    assert found["answers"] == {
        "changed": 0.1, "edits": found["answers"]["edits"], "seconds": [1.0, 0.5], "acceptance": [1.0, 0.75],
        "measured": [[[5, "EPYC"]]] * 2, "measured_alike": True,
    }  # fmt: skip
    assert 0 < found["answers"]["edits"] <= 1 / 10 and tokens > 10
    assert found["differs"] == ["quantize"] and read_result(small / "result.json").mode == "boost+verify+int8"
    sentences = " ".join(comparison_sentences(found))
    assert "sft boost+verify+int8 against sft boost+verify" in sentences and "10.0 % of them changed" in sentences
    assert "drafts that were kept: 100.0% and 75.0%" in sentences
    assert "of computing an answer: 1 and 0.5, taken 5 at a time on EPYC" in sentences and "are rough" in sentences
    # another baseline would be one of exact weights
    assert [one["second"]["key"] for one in compare_modes(tmp_path / "bench")] == [found["first"]["key"]]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Measured(1, "EPYC"), "1 at a time on EPYC"),
        (Measured(5, "Xeon"), "5 at a time on Xeon"),
        (Measured(), "by an earlier version, at an unknown number at a time"),
    ],
)
def test_seconds_that_were_taken_otherwise_are_not_set_side_by_side_without_a_word(tmp_path, monkeypatch, other, told):
    one = made(tmp_path, Exact, limit=6)
    monkeypatch.setattr(Rounding, "measured", other)
    two = made(tmp_path, Rounding, decoding=VANILLA, limit=6)
    (said,) = (line for line in comparison_sentences(compare_results(one, two)) if "of computing an answer" in line)
    assert f"not to be compared: the first's were taken 5 at a time on EPYC, the second's {told}" in said
    three = made(tmp_path, Rounding, decoding=VANILLA, limit=5)  # unknown beside unknown is not known to be alike
    assert compare_results(two, three)["answers"]["measured_alike"] is bool(other.together)


@pytest.mark.parametrize("name", ["result.json", "utterances.jsonl"])
def test_a_damaged_neighbour_is_left_out_of_the_comparison_of_modes(tmp_path, name):
    damaged = made(tmp_path, decoding=VANILLA) / name
    made(tmp_path, decoding=VANILLA, limit=12)
    made(tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    (found,) = compare_modes(tmp_path / "bench")
    assert found["first"]["utterances"] == found["utterances"] == 12


def test_what_cannot_be_compared_is_refused_with_what_differs(tmp_path):
    one = made(tmp_path)
    with pytest.raises(UserError, match='listening is {"judge": "spelling"} and {"judge": "another"}'):
        compare_results(one, made(tmp_path, listening="another"))
    changed = tuple(tts_item(str(n), text.replace("cow", "hen")) for n, text in enumerate(SENTENCES))
    with pytest.raises(UserError, match="24 utterances of one id have other recordings, words or references"):
        compare_results(one, made(tmp_path, items=changed))
    with pytest.raises(UserError, match="no utterance in common"):
        compare_results(one, made(tmp_path, items=(tts_item("99", "the cow"),)))
    path = made(tmp_path, model="n") / "result.json"
    figures = json.loads(path.read_text())
    path.write_text(json.dumps({name: figures[name] for name in figures if name not in ("format", "key", "seal")}))
    with pytest.raises(UserError, match="an older version wrote it"):
        compare_results(one, path.parent)
    assert compare_modes(tmp_path / "bench") == []  # passed over, not an error


def test_texts_with_other_ends_of_lines_are_whole_rows(tmp_path):
    odd = tuple(tts_item(str(n), f"the{end}cow") for n, end in enumerate("\u2028\x85\x0c\u2029\x1c"))
    one, two = made(tmp_path, items=odd), made(tmp_path, items=odd, decoding=VANILLA)
    assert compare_results(one, two)["utterances"] == 5


@pytest.mark.parametrize("name", ["result.json", "utterances.jsonl"])
def test_what_was_changed_or_cut_since_it_was_written_is_refused(name, tmp_path):
    vanilla, boost = made(tmp_path, decoding=VANILLA, limit=6), made(tmp_path, limit=6)
    known, path = compare_results(vanilla, boost), boost / name
    for bit in some_bits(path, 60):
        with flipped(path, bit):
            try:
                assert compare_results(vanilla, boost) == known and name == "result.json"  # in the seal's own name
            except UserError as error:
                assert name in str(error) and "rerun its evaluation" in str(error)
    whole = path.read_bytes()
    for cut in (len(whole) // 2, whole.index(b"\n") + 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=f"{name}.*rerun its evaluation"):
            assert read_result(boost / "result.json").utterances
