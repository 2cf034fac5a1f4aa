"""An ablation's page: means over seeds, what was shared, sounds side by side, and nothing from elsewhere."""

import json
import re
import sys
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from made_up_experiment import CHOICES, write_arm, write_experiment
from markupsafe import escape

from vita_audio_pl import report
from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.experiment_files import ExperimentFiles, choice_of, varied_keys
from vita_audio_pl.reporting.experiment_page import experiment_folder, headline, write_experiment_report
from vita_audio_pl.reporting.experiment_tables import (
    cost_table,
    differences_by_seed,
    results_over_seeds,
    sharing_sentences,
    sweep_over_arm,
)
from vita_audio_pl.reporting.seeds import over_seeds
from vita_audio_pl.reporting.wandb_arms import fetch_arms


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> ExperimentFiles:
    return ExperimentFiles.read(write_experiment(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def written(files, tmp_path_factory):
    """The report of twelve runs, and the CPU seconds that it took."""
    started = time.process_time()
    found = write_experiment_report(files, tmp_path_factory.mktemp("report"))
    return found, time.process_time() - started


def test_a_difference_of_one_seed_is_not_called_chance(tmp_path):
    one = headline(ExperimentFiles.read(write_experiment(tmp_path, seeds=(1,))), "test")
    assert any("against every_head, from one seed" in sentence for sentence in one)
    assert not any("chance" in sentence for sentence in one)


def row(table, *labels: str):
    return next(row for row in table.rows if tuple(cell.text for cell in row[: len(labels)]) == labels)


def test_interval_over_three_seeds_is_students_t():
    found = over_seeds([0.10, 0.12, 0.14])
    half = 4.303 * 0.02 / 3**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((0.12, 0.12 - half, 0.12 + half))
    assert over_seeds([0.1]).low is None and over_seeds([]) is None


def test_table_has_means_over_seeds_and_speed_with_the_published_cost_of_a_head(files):
    table = results_over_seeds(files, "test")
    own = dict(zip(table.headers, row(table, "every_head", "own"), strict=True))
    assert own["TTS WER"].value == pytest.approx(0.12) and own["TTS WER"].detail == "9.5 to 14.5"
    assert own["Speed-up"].value == pytest.approx(46 / (12 + 0.11 * 34))
    assert len(table.rows) == 4 * len(CHOICES)


def test_differences_are_paired_by_seed(files):
    """All arms have the same spread over seeds, so their differences have none."""
    cells = row(differences_by_seed(files, "test"), "distil", "own", "TTS WER")
    assert cells[3].text == "-1.0" and cells[3].detail == "-1.0 to -1.0" and cells[4].text == "yes"


def test_shared_stages_are_counted_once_and_named(files):
    assert sweep_over_arm(files).mean == pytest.approx((300 + 4 * 102) / 402, rel=0.01)
    text = " ".join(sharing_sentences(files))
    assert "align made by objective/every_head-seed1 was reused by 3 arms" in text and "1.76 times" in text
    assert row(cost_table(files), "distil")[2].value == pytest.approx(102)


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


def test_page_is_whole_and_loads_nothing_from_elsewhere(files, written):
    page = written[0].page.read_text(encoding="utf-8")
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
    assert {path.name for path in written[0].figures} == {"wer_against_speed.png", "curves_mtp10.png"}
    markdown = (written[0].page.parent / "report.md").read_text(encoding="utf-8")
    assert "| every_head | own |" in markdown and "![wer_against_speed.png]" in markdown


@pytest.mark.slow
def test_report_of_twelve_runs_takes_under_20_seconds(written):
    assert written[1] < 20


@pytest.mark.slow
def test_players_play_and_tables_sort_in_a_browser(written, dump_dom, tmp_path):
    page = written[0].page.read_text(encoding="utf-8")
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


def test_arms_are_fetched_from_wandb_where_they_are_missing(tmp_path):
    """A stand-in for wandb's API: each run hands out one artifact, whose download writes the arm's files."""
    asked = []

    def runs(project, filters):
        asked.append((project, filters))
        return [
            SimpleNamespace(name=f"objective/{choice}-seed1", logged_artifacts=lambda c=choice: [artifact(c)])
            for choice in ("distil", "every_head")
        ]

    def artifact(choice):
        return SimpleNamespace(type="arm", download=lambda root: write_arm(tmp_path / "objective", choice, 1, 0))

    write_arm(tmp_path / "objective", "distil", 1, 0)
    folders = fetch_arms("lab/speech", "objective", tmp_path, SimpleNamespace(runs=runs))
    assert folders == [tmp_path / "objective" / "every_head-seed1"]
    assert asked == [("lab/speech", {"group": "objective", "jobType": "arm"})]
