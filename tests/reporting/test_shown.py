"""Of several results of one place a page shows one, and says what else is there."""

import json

import pytest
from made_up_run import write_json

from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.figures import quality_against_cost
from vita_audio_pl.reporting.run.page import run_page
from vita_audio_pl.reporting.run.result_page import write_result_pages
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.reporting.tables import headline, main_table


def beside(run, name, created="2026-01-01", **changes):
    """Another result of Boost's speech, in a folder of its own."""
    found = run.result("sft", "boost", "tts").folder
    folder = found.with_name(name)
    folder.mkdir()
    figures = json.loads((found / "result.json").read_text()) | {"key": name} | changes
    write_json(folder / "result.json", {field: value for field, value in figures.items() if value is not None})
    (folder / "utterances.jsonl").write_bytes((found / "utterances.jsonl").read_bytes())
    write_json(folder / "key.json", {"key": name, "created": created})
    return folder


def again(run):
    return RunFiles.read(run.folder, run.bench)


def test_the_larger_result_is_shown_and_the_smaller_is_named(run, pictures):
    larger, smaller = beside(run, "larger", utterances=500), beside(run, "smaller", utterances=50)
    found = again(run)
    assert found.result("sft", "boost", "tts").folder == larger
    (note,) = found.notes
    assert note == (
        "Measured over fewer utterances than what is shown: sft test tts boost (50 utterances), "
        "sft test tts boost (320 utterances)."
    )
    assert note in run_page(found, "demo", pictures) and smaller.is_dir()
    assert [len(found.results)] == [len(run.results)]


def test_of_equal_ones_the_latest_is_shown(run):
    later = beside(run, "later", created="2026-03-01")
    beside(run, "earlier", created="2026-02-01")
    found = again(run)
    assert found.result("sft", "boost", "tts").folder == later
    assert found.notes[0].startswith("Measured over as many utterances with another judge, bench or setting, earlier")


def test_results_of_other_weights_are_never_shown(run):
    manifest = run.folder / "sft" / "model" / "manifest.json"
    write_json(manifest, json.loads(manifest.read_text()) | {"weights": "now"})
    beside(run, "stale", utterances=5000, weights="before")
    fresh = beside(run, "fresh", utterances=7, weights="now")
    found = again(run)
    shown = found.result("sft", "boost", "tts")
    assert shown.folder.name == "tts.boost"  # 320 utterances, whose weights are not on record
    assert found.notes[-1] == (
        "Measured with other weights than the stage has now, and not shown: sft test tts boost (5000 utterances)."
    )
    write_json(shown.folder / "result.json", shown.figures | {"weights": "before"})
    assert again(run).result("sft", "boost", "tts").folder == fresh


def test_older_results_are_shown_until_there_is_a_newer_one_and_never_written_to(run):
    for path in (run.folder / "eval" / run.bench).glob("*/*/*/result.json"):
        figures = json.loads(path.read_text())
        write_json(path, {name: figures[name] for name in figures if name not in ("format", "key")})
    older = again(run)
    assert [result.folder for result in older.results] == [result.folder for result in run.results]
    assert older.notes[0].startswith(
        "Written by an older version, which did not record what decided them, and therefore not"
    )
    assert len(headline(older, "sft", "test")) == 2  # what world it is, what Vanilla reaches; nothing is compared
    assert write_result_pages(run.folder / "eval" / run.bench) == []
    newer = beside(run, "newer", utterances=50, format=2)
    found = again(run)
    assert found.result("sft", "boost", "tts").folder == newer
    assert "Written by an older version, and not shown since a newer one is there: sft test tts boost" in found.notes[0]


def test_results_by_different_judges_in_one_table_are_told_apart(run):
    for path in (run.folder / "eval" / run.bench).glob("sft/test/*/result.json"):
        judge = "b" if path.parent.name == "tts.boost" else "a"
        write_json(path, json.loads(path.read_text()) | {"listening": {"judge": judge}})
    (note,) = again(run).notes
    assert note == (
        "Judged or scored by other rules or files than the other results, and not to be compared: "
        "sft test tts boost (320 utterances)."
    )


def test_the_judges_measurement_that_goes_with_the_results_is_shown(run):
    place = run.folder / "eval" / run.bench
    for name, judge, utterances in (("a", "a", 100), ("b", "b", 50), ("c", "b", 60)):
        row = {"recordings": name, "condition": "c", "utterances": utterances, "value": 0, "low": 0, "high": 0}
        write_json(place / "controls" / name / "controls.json", {"listening": {"judge": judge}, "rows": [row]})
    for path in place.glob("sft/test/*/result.json"):
        write_json(path, json.loads(path.read_text()) | {"listening": {"judge": "b"}})
    assert again(run).controls["rows"][0]["recordings"] == "c"


def test_what_is_over_other_utterances_says_so_in_the_figure_and_the_table(run, monkeypatch):
    path = run.result("sft", "turbo", "tts").folder / "result.json"
    figures = json.loads(path.read_text())
    figures["metrics"]["speech_wer"]["utterances"] = figures["utterances"] = 100
    write_json(path, figures)
    found, names = again(run), []
    monkeypatch.setattr("matplotlib.axes.Axes.annotate", lambda self, text, *place, **style: names.append(text))
    quality_against_cost(found, "sft", "test")
    assert {"turbo (n=100)", "vanilla (n=320)"} <= set(names)
    assert main_table(found, "test").rows[-1][-1].text == "100 to 320"


def test_a_file_that_is_no_result_is_a_sentence(run):
    path = run.result("sft", "boost", "tts").folder / "result.json"
    for text in ("{}", "[1]", "3"):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a result"):
            again(run)
