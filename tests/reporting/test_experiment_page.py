"""An ablation's page: whole, with sounds side by side, what is missing said, and nothing from elsewhere."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest
from made_up_experiment import CHOICES, write_experiment
from markupsafe import escape

from vita_audio_pl import report
from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.experiment.figures import experiment_pictures
from vita_audio_pl.reporting.experiment.files import ExperimentFiles, choice_of, varied_keys
from vita_audio_pl.reporting.experiment.page import experiment_folder, side_by_side, write_experiment_report
from vita_audio_pl.reporting.experiment.summary import cautions, headline
from vita_audio_pl.reporting.experiment.tables import results_over_seeds


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> ExperimentFiles:
    return ExperimentFiles.read(write_experiment(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def written(files, tmp_path_factory):
    """The report of twelve runs."""
    return write_experiment_report(files, tmp_path_factory.mktemp("report"))


def test_a_ratio_is_shown_by_its_numbers_and_name():
    settings = [{"text_audio_interval_ratio": ratio, "n_heads": "2"} for ratio in ("[1,10,4,10]", "[4,10]")]
    assert [choice_of(one, varied_keys(settings)) for one in settings] == ["1 10 4 10 (boost)", "4 10"]
    assert choice_of({"n_heads": "5"}, ["n_heads"]) == "n_heads 5"


def test_unfinished_arms_are_left_out_and_said_to_be(tmp_path):
    folder = write_experiment(tmp_path, seeds=(1,))
    path = folder / "distil-seed1" / "arm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": False}))
    files = ExperimentFiles.read(folder)
    assert files.unfinished == ("distil-seed1",) and "distil" not in files.choices
    assert cautions(files)[0] == "Not finished, and left out: distil-seed1."


def test_unequal_seeds_are_told_wherever_a_mean_stands(tmp_path):
    """distil has seed 3 alone, and the first arm not seed 1: nothing may pass for a comparison over three seeds."""
    folder = write_experiment(tmp_path)
    for arm in ("distil-seed1", "distil-seed2"):
        shutil.rmtree(folder / arm)
    path = folder / "every_head-seed1" / "arm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": False}))
    files = ExperimentFiles.read(folder)
    left_out, missing, unequal = cautions(files)
    assert missing == "Never started: distil with seed 1, distil with seed 2."
    assert "(every_head: 2, served_slots: 3, audio_only: 3, distil: 1)" in unequal
    told = headline(files, "test")
    assert told[2].startswith("served_slots, mode own, 3 seeds: TTS WER 15.2 % (12.5 to 17.9), spoken QA in")
    # 15.75 - 12.5 over seeds 2 and 3, not 15.2 - 12.5
    assert told[3].startswith(
        "served_slots against every_head, over the 2 common seeds: TTS WER +3.2 points (beyond chance)"
    )
    alone, beside = told[-2:]
    assert alone.startswith("distil, mode own, one seed: TTS WER 12.0 %, spoken QA in")
    assert beside.startswith(
        "distil against every_head, over the one common seed, which leaves chance open: TTS WER -1.0"
    )
    assert "within chance" not in beside and "beyond chance" not in beside
    assert {row[0].text: row[-1].text for row in results_over_seeds(files, "test").rows} == {
        "every_head": "2 of 3", "served_slots": "3", "audio_only": "3", "distil": "1 of 3",
    }  # fmt: skip
    assert "Hollow: one seed" in experiment_pictures(files, "test")["wer_against_speed"].text
    assert files.sample_seed == 3  # the only one of all four, though the first arm's first is 2
    heard = {voice.name.partition(",")[0] for utterance in side_by_side(files, "test") for voice in utterance.voices}
    assert heard == set(CHOICES)


def test_arms_that_differ_in_training_steps_are_named(tmp_path):
    folder = write_experiment(tmp_path, seeds=(1, 2))
    assert not any("training steps" in one for one in cautions(ExperimentFiles.read(folder)))
    path = folder / "distil-seed2" / "mtp10" / "model" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 500}))
    (told,) = cautions(ExperimentFiles.read(folder))
    assert told.startswith("Arms differ in training steps")
    assert told.endswith(
        "distil with seed 1: align 150 steps, mtp10 150 steps; distil with seed 2: align 150 steps, mtp10 500 steps."
    )


def test_page_is_whole_and_loads_nothing_from_elsewhere(files, written):
    page = written.page.read_text(encoding="utf-8")
    found: dict[str, list[dict]] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.setdefault(tag, []).append(dict(attributes))

    Reader().feed(page)
    addresses = [
        value for tags in found.values() for tag in tags for name, value in tag.items() if name in ("src", "href")
    ]
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert not re.search(r"https?://|@import|url\(", page)
    assert len(found["audio"]) == 2 * 3 * (3 + 3 * 2)  # tasks, prompts; all modes of the first arm, two of the others
    assert "Which targets should heads learn?" in page and all(
        escape(sentence) in page for sentence in headline(files, "test")
    )
    assert {path.name for path in written.figures} == {"wer_against_speed.png", "curves_mtp10.png"}
    markdown = (written.page.parent / "report.md").read_text(encoding="utf-8")
    assert "| every_head | own |" in markdown and "![wer_against_speed.png]" in markdown


@pytest.mark.slow
@pytest.mark.ci
def test_players_play_and_tables_sort_in_a_browser(written, dump_dom, tmp_path):
    page = written.page.read_text(encoding="utf-8")
    probe = """<script>addEventListener("load", async () => {
      const players = [...document.querySelectorAll("audio")];
      await Promise.all(players.slice(0, 4).map((p) => p.play()));
      const table = document.querySelector("table.sortable");
      table.querySelectorAll("button")[3].click();
      const column = [...table.tBodies[0].rows].map((row) => row.cells[3].dataset.value);
      document.title = `played ${players.filter((p) => p.duration > 0.2).length} sorted ${column.join(" ")}`;
    });</script></body>"""
    path = tmp_path / "probe.html"
    path.write_text(page.replace("</body>", probe), encoding="utf-8")
    title = re.search(r"<title>played (\d+) sorted ([^<]*)</title>", dump_dom(path, 8000))
    values = [float(value) for value in title[2].split()]
    assert int(title[1]) == page.count("<audio") and values == sorted(values)


def test_report_command_takes_the_name_of_an_ablation(tmp_path, monkeypatch, capsys):
    write_experiment(tmp_path / "runs", seeds=(1,))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", "experiment=objective"])
    report.main()
    assert (tmp_path / "runs/objective/report/index.html").is_file() and "Held-out results" in capsys.readouterr().out
    with pytest.raises(UserError, match="no ablation 'objectiv' in .*there are objective"):
        experiment_folder(tmp_path / "runs", "objectiv")
