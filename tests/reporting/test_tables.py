"""Tables say what the files say, and say so where nothing was measured."""

import json

import pytest
from made_up_run import write_json

from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.reporting.tables import (
    STOPWATCH,
    comparison_table,
    controls_table,
    headline,
    main_table,
    markdown,
    stopwatch,
)


def cells(table, row):
    return dict(zip(table.headers, table.rows[row], strict=True))


def test_main_table_has_a_row_for_each_stage_and_mode_in_training_order(run):
    table = main_table(run, "test")
    assert [(row[0].text, row[1].text) for row in table.rows] == [
        ("align", "vanilla"), ("mtp1", "vanilla"), ("mtp10", "vanilla"),
        ("sft", "vanilla"), ("sft", "boost"), ("sft", "turbo"),
    ]  # fmt: skip
    boost = cells(table, 4)
    assert boost["ASR WER"].text == "5.2 %" and boost["ASR WER"].detail == "4.0 to 6.6"
    assert boost["Spoken QA, speech"].text == "67.5 %"
    assert boost["Backbone passes per answer"].text == "11.0"
    assert boost["Share of Vanilla's"].text == "23 %"  # 11 of 47
    assert boost["Utterances per task"].text == "320" and cells(table, 0)["Utterances per task"].text == "100"


def test_the_stopwatch_counts_answers_that_were_timed_and_have_sound(run):
    result = run.result("sft", "boost", "tts")
    rows = [json.loads(line) for line in (result.folder / "utterances.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["seconds"] = 2.0 if number else 0.0  # the first one is silent
    (result.folder / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    timed = [{"id": row["id"], "compute_seconds": 1.5} for row in rows[:2]] + [{"id": rows[2]["id"]}]
    (result.folder / "answers.0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timed) + '{"id": "torn')
    found = RunFiles.read(run.folder, run.bench)
    assert stopwatch([found.result("sft", "boost", "tts")]).value == 0.75
    assert cells(main_table(found, "test"), 4)[STOPWATCH].text == "0.75"
    assert cells(main_table(found, "test"), 0)[STOPWATCH].value is None


def test_no_speed_is_claimed_for_speech_that_is_not_understood(run):
    comparison = next(c for c in run.comparisons if "tts" in str(c["second"]))
    comparison["metrics"]["speech_wer"]["second"] = 0.97
    assert headline(run, "sft", "test")[-1] == "Boost has a TTS WER of 97.0 %, so nothing is said of its speed."


def test_share_is_taken_over_utterances_that_both_modes_answered(run):
    path = run.result("sft", "turbo", "tts").folder / "utterances.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["backbone_passes"], rows[1]["id"] = 14, "only-here"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # tts: ids t0 (14 passes) and t2 (5) against 2 x 47; sqa: three of 5 against 3 x 47
    share = cells(main_table(RunFiles.read(run.folder, run.bench), "test"), 5)["Share of Vanilla's"]
    assert share.value == pytest.approx((14 + 5 + 15) / (5 * 47))


def test_what_was_not_measured_is_a_dash_not_a_number(run):
    row = cells(main_table(run, "unseen_voice"), 0)
    assert row["ASR WER"].text == "3.7 %" and row["TTS WER"].text == "–" and row["TTS WER"].value is None


def test_markdown_escapes_nothing_and_loses_nothing(run):
    lines = markdown(controls_table(run)).splitlines()
    assert (
        lines[0] == "| Recordings | What the judge transcribed | WER | Utterances |"
        and lines[1] == "|---|---|---:|---:|"
    )
    assert lines[2] == "| assistant's voice | the recording | 1.2 % (1.0 to 1.4) | 100 |"
    compared = markdown(comparison_table(run, "test", "sft"))
    assert "| TTS WER | boost | 6.1 % | 7.6 % | +1.5 (+0.4 to +2.6) | < 0.001 | 318 |" in compared
    assert not comparison_table(run, "test", "mtp1").rows


def test_headline_says_what_vanilla_reaches_and_what_speed_costs(run):
    banner, vanilla, boost = headline(run, "sft", "test")
    assert banner.startswith("The small spoken world has 75 words, and its judge knows the grammar")
    assert vanilla.startswith("After sft, Vanilla reaches ASR WER 3.7 %, TTS WER 5.5 %, Spoken QA, text 80.0 %")
    assert boost == (
        "Boost speaks with 23 % of the backbone passes at a TTS WER of 7.6 %, where Vanilla has 6.1 % over the same 318 "
        "utterances: +1.5 points (+0.4 to +2.6)."
    )


def test_stage_order_comes_from_the_manifests_not_from_file_times(run):
    (run.folder / "align" / "metrics.csv").touch()
    assert [stage.name for stage in RunFiles.read(run.folder, run.bench).stages] == ["align", "mtp1", "mtp10", "sft"]


def test_a_run_without_files_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no run in"):
        RunFiles.read(tmp_path / "none", "spoken_world")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no metrics\.csv"):
        RunFiles.read(tmp_path / "empty", "spoken_world")


def test_a_damaged_result_is_named(run):
    write_json(run.folder / "eval" / run.bench / "controls.json", {})
    (run.folder / "eval" / run.bench / "controls.json").write_text("{")
    with pytest.raises(UserError, match=r"controls\.json is not JSON"):
        RunFiles.read(run.folder, run.bench)


def test_a_run_measured_on_several_benches_asks_which(run):
    (run.folder / "eval" / run.bench).rename(run.folder / "eval" / "one")
    assert RunFiles.read(run.folder).bench == "one"
    other = run.folder / "eval" / "other" / "sft" / "test" / "asr.vanilla"
    other.mkdir(parents=True)
    (other / "result.json").write_text("{}")
    with pytest.raises(UserError, match="one, other; choose one with bench_name"):
        RunFiles.read(run.folder)
