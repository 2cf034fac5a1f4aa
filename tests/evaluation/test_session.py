"""From a model folder to result files: every task, two modes, the judge's controls, comparisons, wandb."""

import json
import os
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import soundfile
from tones import RATE, SENTENCES, CountingJudge

from tests.margins import assert_same_answers
from tests.patience import PATIENCE, wait_until
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluate import evaluate
from vita_audio_pl.evaluation.judges.choice import judge_maker
from vita_audio_pl.evaluation.runs import evaluate as session
from vita_audio_pl.evaluation.runs import toolbox
from vita_audio_pl.evaluation.runs.evaluate import evaluation_keys, run_session
from vita_audio_pl.evaluation.runs.plan import plan_evaluations
from vita_audio_pl.evaluation.settings import SuiteConfig, SuiteEntry
from vita_audio_pl.inference import generate, loading
from vita_audio_pl.inference.kernels import read_choices
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.devices import processor
from vita_audio_pl.models.load import load_model
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.reporting.tables import judges_table


def files_of(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("key.json",)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if ".0.jsonl" not in path.name}


def without_time(files):
    """The controls' measurement states when it was made, and kernels are chosen by the clock."""
    return {
        name: content
        for name, content in files.items()
        if not name.endswith("controls.json") and "/kernels-" not in name
    }


def test_every_task_is_measured_and_a_repeated_run_changes_nothing(config, tmp_path):
    results = run_session(config)
    assert {result["task"] for result in results} == {"asr", "tts", "sqa", "text"}
    assert all(result["utterances"] == 6 and result["stage"] == "sft" for result in results)
    assert all(result["tokens"] == result["backbone_passes"] for result in results)  # Vanilla: a pass per token
    place = tmp_path / "w" / "runs" / "r" / "eval" / "tones"
    first = files_of(place)
    (tts,) = (name.rpartition("/")[0] for name in first if "/tts.vanilla.6-" in name and name.endswith("/result.md"))
    (kernels,) = place.glob(f"{tts}/kernels-*.json")
    read_choices(kernels)  # as `kernels=FILE` reads them
    run_session(config)
    assert files_of(place) == first
    # the tts audio of the first two, and of the worst two, is kept where there is any
    rows = [json.loads(line) for line in first[f"{tts}/utterances.jsonl"].splitlines()]
    assert all("audio" in row for row in rows if row["id"] in ("tts0", "tts1") and not row["silent"])


def test_questions_and_expected_answers_are_kept_where_pages_play_them_from(config, tmp_path):
    place = tmp_path / "w/runs/r/eval/tones"
    (tmp_path / "w" / "1.wav").rename(tmp_path / "w" / "1.audio")
    config.bench.tasks["sqa"] = {"test": "renamed.jsonl"}
    questions = (tmp_path / "w" / "sqa.jsonl").read_text()
    (tmp_path / "w" / "renamed.jsonl").write_text(questions.replace("1.wav", "1.audio"))
    run_session(replace(config, task="sqa", controls=0))
    (folder,) = place.glob("sft/test/sqa.vanilla.6-*")
    rows = {row["id"]: row for row in map(json.loads, (folder / "utterances.jsonl").read_text().splitlines())}
    for name in ("source", "spoken_reference"):
        assert (place / rows["sqa0"][name]).read_bytes() == (tmp_path / "w" / "0.wav").read_bytes()
        assert rows["sqa1"][name] == str(tmp_path / "w" / "1.audio")  # no ending of audio: named, and never copied
    kept = [row for row in rows.values() if row["source"].startswith("recordings/")]
    assert 1 <= len(kept) <= 4  # the first two, and the worst two
    assert len(list((place / "recordings").iterdir())) == 2 * len(kept)


def test_two_processes_and_a_lost_batch_give_the_same_files(config, tmp_path):
    run_session(config)
    place = tmp_path / "w" / "runs" / "r" / "eval" / "tones"
    whole = files_of(place)
    for name in ("answers.0.jsonl", "transcripts.0.jsonl"):
        (path,) = place.glob(f"sft/test/sqa.vanilla.6-*/{name}")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    (controls,) = place.glob("controls/*/controls.json")
    controls.unlink()
    run_session(replace(config, workers=2))
    assert without_time(files_of(place)) == without_time(whole) and controls.is_file()


def test_modes_are_compared_with_vanilla_and_cost_less(config, tmp_path):
    run_session(replace(config, task="tts"))
    run_session(replace(config, task="tts", mode="boost"))
    (comparison,) = json.loads((tmp_path / "w/runs/r/eval/tones/comparisons.json").read_text())["comparisons"]
    assert (comparison["task"], comparison["mode"], comparison["utterances"]) == ("tts", "boost", 6)
    assert comparison["backbone_passes_share"] < 0.8
    assert 0 < comparison["metrics"]["speech_wer"]["p_value"] <= 1


def test_verified_drafts_give_vanillas_answers(config, tmp_path, monkeypatch):
    answered = []

    def noted(runtime, prompts, pattern, **options):
        answers = generate(runtime, prompts, pattern, **options)
        answered.append((prompts, [answer.ids for answer in answers], options["constraint"]))
        return answers

    monkeypatch.setattr(toolbox, "generate", noted)
    vanilla = run_session(replace(config, task="tts"))[0]
    checked = run_session(replace(config, task="tts", mode="boost", verify="greedy"))[0]
    model = load_model(config.model)
    half = len(answered) // 2
    for (prompts, expected, constraint), (same, found, _) in zip(answered[:half], answered[half:], strict=True):
        assert same == prompts
        assert_same_answers(model, DecodePattern.of("vanilla"), prompts, found, expected, constraint=constraint)
    if [ids for _, ids, _ in answered[:half]] == [ids for _, ids, _ in answered[half:]]:
        assert checked["metrics"] == vanilla["metrics"]
    assert list((tmp_path / "w/runs/r/eval/tones/sft/test").glob("tts.boost+verify.6-*/result.json"))


def test_seconds_of_answers_leave_out_what_is_done_once_and_say_how_they_were_taken(config, tmp_path, monkeypatch):
    now, begun = [0.0], set()

    def once(seconds, make):
        def made(*given, **settings):
            now[0] += seconds
            return make(*given, **settings)

        return made

    def timed(runtime, prompts, pattern, **options):
        first = (pattern, id(options["decoder"])) not in begun
        begun.add((pattern, id(options["decoder"])))
        now[0] += len(prompts) + 100 * first
        return generate(runtime, prompts, pattern, **options)

    monkeypatch.setattr(toolbox, "time", SimpleNamespace(process_time=lambda: now[0], perf_counter=lambda: now[0]))
    monkeypatch.setattr(toolbox, "Decoder", once(1000, toolbox.Decoder))
    monkeypatch.setattr(loading, "Runtime", once(1000, loading.Runtime))
    monkeypatch.setattr(toolbox, "generate", timed)
    for mode in ("vanilla", "boost"):
        run_session(replace(config, task="tts", mode=mode))
        (path,) = (tmp_path / "w/runs/r/eval/tones/sft/test").glob(f"tts.{mode}.6-*/answers.0.jsonl")
        answers = [json.loads(line) for line in path.read_text().splitlines()]
        assert sum(answer["compute_seconds"] for answer in answers) == pytest.approx(6, abs=1e-3)
        assert [answer["together"] for answer in answers] == [4] * 4 + [2] * 2
        assert {answer["machine"] for answer in answers} == {processor()}


@pytest.mark.parametrize("name", ["result.json", "utterances.jsonl"])
def test_a_damaged_neighbour_is_named_and_what_was_asked_for_is_printed_and_kept(config, tmp_path, capsys, name):
    evaluate(replace(config, task="tts"))
    place = tmp_path / "w/runs/r/eval/tones"
    (damaged,) = place.glob(f"sft/test/tts.vanilla.6-*/{name}")
    damaged.write_bytes(damaged.read_bytes()[:-40])
    capsys.readouterr()
    evaluate(replace(config, task="tts", mode="boost", verify="greedy"))
    (kept,) = place.glob("sft/test/tts.boost+verify.6-*/result.json")
    said = "".join(capsys.readouterr())
    assert json.loads(kept.read_text())["utterances"] == 6 and "sft boost+verify" in said
    (line,) = (line for line in said.splitlines() if "left out" in line)
    assert str(damaged) in line and "rerun its evaluation" in line
    assert kept.with_suffix(".md").read_text().startswith("# tones test: tts, sft, boost+verify\n")


def test_controls_measure_the_judge_and_keep_the_codecs_sound(config, tmp_path):
    run_session(config)
    place = tmp_path / "w/runs/r/eval/tones"
    (path,) = place.glob("controls/*/controls.json")
    controls = json.loads(path.read_text())
    conditions = [(row["recordings"], row["condition"]) for row in controls["rows"]]
    assert len(conditions) == 4 + 3 and all(row["utterances"] == 6 for row in controls["rows"])
    assert ("the assistant's voice", "noise of the same length and level") in conditions
    for name in ("tts.tts0", "tts.tts1", "sqa.sqa0", "sqa.sqa1"):
        wave, rate = soundfile.read(place / controls["resynthesis"][name])
        assert rate == RATE and len(wave) > 3000


def as_rank(rank, config, folder):
    """What a process does that torchrun starts: evaluates its part, and notes what it was given."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost",
                   "MASTER_PORT": "29500"}  # fmt: skip
    results = run_session(config)
    (folder / f"rank{rank}.json").write_text(json.dumps(results))


def test_ranks_share_the_work_end_together_and_one_writes_the_results(config, tmp_path):
    alone = run_session(replace(config, output=str(tmp_path / "alone")))
    shared = replace(config, output=str(tmp_path / "shared"), batch_size=2)
    ranks = [get_context("fork").Process(target=as_rank, args=(rank, shared, tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(PATIENCE)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)] == [
        json.loads(json.dumps(alone)),
        [],
    ]
    results = {
        name: text for name, text in files_of(tmp_path / "alone").items() if "result" in name or "utterances" in name
    }
    assert len(results) == 4 * 3 and results.items() <= files_of(tmp_path / "shared").items()
    for stem in ("answers", "transcripts"):
        assert len(list((tmp_path / "shared").rglob(f"tts*/{stem}.[01].jsonl"))) == 2


def test_a_smaller_look_and_another_batch_size_keep_all_that_was_done(config, tmp_path):
    (whole,) = run_session(replace(config, task="tts"))
    place = tmp_path / "w/runs/r/eval/tones"
    before = files_of(place)
    toolbox = session.ModelToolbox.answer
    session.ModelToolbox.answer = None  # nothing is to be generated
    try:
        assert run_session(replace(config, task="tts", batch_size=1, workers=1)) == [whole]
        (look,) = run_session(replace(config, task="tts", limit=2))
    finally:
        session.ModelToolbox.answer = toolbox
    assert look["utterances"] == 2 and look["limited_to"] == 2 and look["key"] != whole["key"]
    after = files_of(place)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {"comparisons.json"}


def test_a_run_whose_weights_were_replaced_is_another_result(config, tmp_path):
    (one,) = run_session(replace(config, task="text"))
    manifest = tmp_path / "w/runs/r/sft/model/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"weights": "v"}))
    (two,) = run_session(replace(config, task="text"))
    assert one["key"] != two["key"] and (one["weights"], two["weights"]) == ("w", "v")
    assert len(list((tmp_path / "w/runs/r/eval/tones/sft/test").glob("text.vanilla.6-*/result.json"))) == 2


def test_a_bench_without_spoken_references_is_measured_without_players(config, tmp_path):
    config.bench.tasks["sqa"] = {"test": "questions.jsonl"}
    config.bench.format = "questions"
    rows = [{"id": str(n), "audio": f"{n}.wav", "answers": [text]} for n, text in enumerate(SENTENCES)]
    (tmp_path / "w" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (result,) = run_session(replace(config, task="sqa"))
    place = tmp_path / "w/runs/r/eval/tones"
    assert result["utterances"] == 6 and not (place / "controls").exists()
    asr = replace(config, bench=replace(config.bench, format="samples"), task="all", players=0)
    asr.bench.tasks = {"asr": {"test": "asr.jsonl"}, "tts": {"test": "tts.jsonl"}}
    run_session(asr)
    (path,) = place.glob("controls/*/controls.json")
    assert json.loads(path.read_text())["resynthesis"] == {}


def test_generating_and_scoring_are_separate_steps(config, tmp_path):
    with pytest.raises(UserError, match=r"6 answers of sft tts vanilla are missing .* generate them first"):
        run_session(replace(config, task="tts", step="score"))
    assert run_session(replace(config, task="tts", step="generate")) == []
    (place,) = (tmp_path / "w/runs/r/eval/tones/sft/test").glob("tts.vanilla.6-*")
    assert not (place / "result.json").exists()
    before = (place / "answers.0.jsonl").read_bytes()
    (result,) = run_session(replace(config, task="tts", step="score"))
    assert result["utterances"] == 6 and (place / "answers.0.jsonl").read_bytes() == before


def test_a_suite_takes_its_models_from_the_stages_of_a_run(config, tmp_path):
    entries = [SuiteEntry("sft", ["vanilla", "boost"], ["text", "asr"], limit=3)]
    suite = replace(config, model=None, run_name="r", suite=SuiteConfig("s", entries), controls=0)
    suite.paths.runs = str(tmp_path / "w" / "runs")
    assert [(r["task"], r["mode"], r["limited_to"]) for r in run_session(suite)] == [
        ("text", "vanilla", 3), ("text", "boost", 3), ("asr", "vanilla", 3), ("asr", "boost", 3),
    ]  # fmt: skip
    tried = plan_evaluations(replace(suite, limit=2))
    assert [len(evaluation.items) for evaluation in tried] == [2, 2, 2, 2]  # the smaller of what both say
    with pytest.raises(UserError, match="slack means something only with verify=groups"):
        replace(config, slack=0.3).check()
    for ignored in ({"task": "tts"}, {"mode": "boost"}):
        with pytest.raises(UserError, match="suite=s says itself which tasks and modes"):
            replace(suite, **ignored).check()
    missing = replace(suite, suite=SuiteConfig("s", [SuiteEntry("mtp1", ["vanilla"], ["asr"])]))
    with pytest.raises(UserError, match="there is no model folder .*mtp1"):
        run_session(missing)


class OtherJudge:
    """Hears one word, whatever is said."""

    def transcribe(self, waves, sample_rate):
        return ["the" for _ in waves]


def speak_all_but(monkeypatch, *silent):
    """Let the random model say three codes, or nothing."""
    as_answer = toolbox.as_answer

    def spoken(id, *rest):
        return replace(as_answer(id, *rest), codes=() if id in silent else (1, 2, 3))

    monkeypatch.setattr(toolbox, "as_answer", spoken)


def test_two_judges_hear_the_same_recordings_and_answers_once(config, tmp_path, monkeypatch):
    speak_all_but(monkeypatch)
    judges = {"counting": CountingJudge(), "pocketsphinx_words": OtherJudge()}
    monkeypatch.setattr(session, "judge_maker", lambda *settings: judges.__getitem__)
    entries = [SuiteEntry("sft", ["vanilla", "boost"], ["tts"])]
    suite = SuiteConfig("s", entries, controls=0, heard_twice=5, second_judge="pocketsphinx_words")
    config = replace(config, model=None, run_name="r", suite=suite)
    config.paths.runs = str(tmp_path / "w" / "runs")
    run_session(config)
    (path,) = (tmp_path / "w/runs/r/eval/tones").glob("second_judge/*/judges.json")
    told = json.loads(path.read_text())
    assert told["judges"] == ["counting", "pocketsphinx_words"] and told["facts"]["version"]
    assert [row["heard"] for row in told["rows"]] == [
        "the recording", "the recording after the codec",
        "spoken by the model: sft tts vanilla", "spoken by the model: sft tts boost",
    ]  # fmt: skip
    words = [len(text.split()) for text in SENTENCES[:5]]
    for row in told["rows"]:
        assert row["utterances"] == 5
        # "the" stands in three of the five texts; of the others one word of "the" is wrong, and the rest is missing
        assert row["second"]["value"] == pytest.approx((sum(words) - 3) / sum(words), abs=1e-4)
    # of a quarter of a second two words, of four whole codes three, none of them right
    first = [row["first"]["value"] for row in told["rows"][:2]]
    assert first == pytest.approx([sum(max(n, count) for count in words) / sum(words) for n in (2, 3)], abs=1e-4)
    before = path.read_bytes()
    run_session(config)
    assert path.read_bytes() == before
    table = judges_table(RunFiles.read(tmp_path / "w/runs/r"))
    assert table.headers[1:3] == ("WER by counting", "WER by pocketsphinx_words") and len(table.rows) == 4


def test_two_judges_hear_the_texts_whose_recordings_are_there_and_no_silent_answer(config, tmp_path, monkeypatch):
    """The second judge would write a word even where nothing is said."""
    judges = {"counting": CountingJudge(), "pocketsphinx_words": OtherJudge()}
    monkeypatch.setattr(session, "judge_maker", lambda *settings: judges.__getitem__)
    speak_all_but(monkeypatch, "tts1")
    suite = SuiteConfig("s", [SuiteEntry("sft", ["vanilla"], ["tts"])], 0, 5, "pocketsphinx_words")
    config = replace(config, model=None, run_name="r", suite=suite)
    config.paths.runs = str(tmp_path / "w" / "runs")
    (tmp_path / "w" / "0.wav").unlink()
    run_session(config)
    place = tmp_path / "w/runs/r/eval/tones/second_judge"
    (path,) = place.glob("*/judges.json")
    words = sum(len(text.split()) for text in SENTENCES[1:])
    rates = [row["second"]["value"] for row in json.loads(path.read_text())["rows"]]
    # "the" stands in two of the five texts, one of which was not said
    assert rates == pytest.approx([(words - 2) / words] * 2 + [(words - 1) / words], abs=1e-4)
    samples = (tmp_path / "w" / "tts.jsonl").read_text()
    (tmp_path / "w" / "tts.jsonl").write_text(samples.replace("a red cup", "the red cup"))
    run_session(config)  # equal sounds, other texts
    (other,) = set(place.glob("*/judges.json")) - {path}
    rates = [row["second"]["value"] for row in json.loads(other.read_text())["rows"]]
    assert rates == pytest.approx([(words - 3) / words] * 2 + [(words - 2) / words], abs=1e-4)


def test_a_second_judge_that_cannot_be_built_is_refused_before_the_first_answer(config, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "judge_maker", lambda *settings: {"counting": CountingJudge()}.__getitem__)
    suite = SuiteConfig("s", [SuiteEntry("sft", ["vanilla"], ["tts"])], 0, 5, "pocketsphinx_words")
    config = replace(config, model=None, run_name="r", suite=suite)
    config.paths.runs = str(tmp_path / "w" / "runs")
    with pytest.raises(KeyError, match="pocketsphinx_words"):
        run_session(config)
    assert not list((tmp_path / "w").rglob("answers.*"))
    suite.heard_twice = 0
    assert run_session(config)


def test_both_profiles_are_printed_from_one_generation(config, tmp_path):
    results = run_session(replace(config, task="asr", profile="both"))
    assert [result["profile"] for result in results] == ["strict", "reference"]
    assert len(results[1]["profile_differences"]) == 4
    strict, published = (result["metrics"]["wer"]["value"] for result in results)
    assert published <= strict


def test_a_recording_that_cannot_be_read_ends_the_run_or_counts_as_wrong(config, tmp_path):
    (tmp_path / "w" / "2.wav").write_bytes(b"not audio")
    with pytest.raises(UserError, match=r"utterance 'asr2': .*2\.wav"):
        run_session(replace(config, task="asr"))
    (result,) = run_session(replace(config, task="asr", missing_audio="count"))
    assert result["failed"] == 1 and result["utterances"] == result["metrics"]["wer"]["utterances"] == 6


def test_a_judge_that_is_not_there_is_refused_before_the_first_answer(config, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "judge_maker", judge_maker)
    with pytest.raises(UserError, match="judge=whisper needs its checkpoint"):
        run_session(replace(config, task="tts", judge="whisper"))
    assert not list(tmp_path.rglob("answers.*.jsonl"))


def test_figures_reach_wandb_without_a_network(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_session(replace(config, task="text", wandb="offline"))
    (written,) = (tmp_path / "w/runs/r/eval/tones").glob("wandb/offline-run-*/*.wandb")
    # wandb's writer is a process of its own
    wait_until(lambda: b"tones/test/text/text_accuracy/sft/vanilla" in written.read_bytes(), "the figures in the file")


def test_the_keys_of_a_session_are_known_without_it_and_follow_the_bench_and_the_judge(config, tmp_path):
    asked = replace(config, task="asr")
    keys = evaluation_keys(asked)
    assert keys == [result["key"] for result in run_session(asked)]
    assert evaluation_keys(replace(asked, batch_size=1, players=0)) == keys
    assert evaluation_keys(replace(asked, limit=2)) != keys
    (tmp_path / "w" / "0.wav").write_bytes((tmp_path / "w" / "1.wav").read_bytes())
    assert evaluation_keys(asked) != keys
