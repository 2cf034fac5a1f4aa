"""Tables say what the files say, and say so where nothing was measured."""

import json

import pytest
from made_up_run import write_json

from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.run.write import write_report
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.reporting.tables import (
    COMPUTING,
    comparison_table,
    computing,
    controls_table,
    headline,
    main_table,
    markdown,
    results_table,
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


def test_seconds_of_computing_count_answers_that_were_timed_and_have_sound_and_say_how_they_were_taken(run, tmp_path):
    assert main_table(run, "test").caption == ""  # nothing was timed
    result = run.result("sft", "boost", "tts")
    rows = [json.loads(line) for line in (result.folder / "utterances.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["seconds"] = 2.0 if number else 0.0  # the first one is silent
    (result.folder / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = {"compute_seconds": 1.5, "together": 64, "machine": "EPYC"}
    timed = [{"id": row["id"]} | how for row in rows[:2]] + [{"id": rows[2]["id"]}]
    (result.folder / "answers.0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timed) + '{"id": "torn')
    found = RunFiles.read(run.folder, run.bench)
    assert computing([found.result("sft", "boost", "tts")]).value == 0.75
    table = main_table(found, "test")
    cell = cells(table, 4)[COMPUTING]
    assert (cell.text, cell.detail) == ("0.75", "64 at a time") and cells(table, 0)[COMPUTING].value is None
    assert "taken 64 at a time on EPYC" in table.caption and "are rough" in table.caption
    assert "not to be compared" not in table.caption
    write_report(found, tmp_path / "report", "demo")
    assert all(
        "taken 64 at a time on EPYC" in (tmp_path / "report" / name).read_text() for name in ("index.html", "tables.md")
    )


@pytest.mark.parametrize(
    ("how", "detail", "told"),
    [
        ({"together": 1, "machine": "EPYC"}, "1 at a time", "1 at a time on EPYC"),
        ({"together": 64, "machine": "Xeon"}, "64 at a time", "64 at a time on Xeon"),
        ({}, "unknown number at a time", "by an earlier version"),
    ],
)
def test_seconds_that_were_taken_otherwise_are_told_apart_below_the_table(run, how, detail, told):
    for mode, taken in (("vanilla", how), ("boost", {"together": 64, "machine": "EPYC"})):
        folder = run.result("sft", mode, "tts").folder
        rows = [json.loads(line) | {"seconds": 2.0} for line in (folder / "utterances.jsonl").read_text().splitlines()]
        timed = [{"id": row["id"], "compute_seconds": 1.0} | taken for row in rows]
        for name, lines in (("utterances", rows), ("answers.0", timed)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    table = main_table(RunFiles.read(run.folder, run.bench), "test")
    assert [cells(table, row)[COMPUTING].detail for row in (3, 4)] == [detail, "64 at a time"]
    assert told in table.caption and "64 at a time on EPYC" in table.caption
    assert "Figures of different numbers at a time or machines are not to be compared." in table.caption


def test_the_table_of_results_names_modes_in_full_and_counts_what_could_not_be_asked(run):
    figures = run.result("sft", "boost", "asr").figures | {
        "verify": "greedy",
        "quantize": "int8",
        "sampling": {"seed": 1},
    }
    table = results_table([figures | {"silent": 0, "unfinished": 2, "failed": 5}])
    row = cells(table, 0)
    assert row["Model"].text == "sft boost+verify+sampled+int8"
    assert (row["Silent"].text, row["Cut off"].text, row["Could not be asked"].text) == ("0", "2", "5")


def test_passes_of_utterances_that_could_not_be_asked_are_no_part_of_a_mean(run):
    for path in (run.folder / "eval" / run.bench).glob("sft/test/tts.boost/result.json"):
        write_json(path, json.loads(path.read_text()) | {"failed": 160, "backbone_passes": 20})
    boost = cells(main_table(RunFiles.read(run.folder, run.bench), "test"), 4)
    assert boost["Backbone passes per answer"].value == pytest.approx((160 * 20 + 320 * 11) / 480)


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
