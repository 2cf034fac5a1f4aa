"""The page of a run, opened in a browser: everything is inside it, tables sort, players play."""

import json
import re

from vita_audio_pl.reporting.page import run_page
from vita_audio_pl.reporting.published import published_table, reasons_against_comparing
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.reporting.write import write_report

PROBE = """
<script>
addEventListener("load", async () => {
  const table = document.querySelector("#results table"), report = {};
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[2].firstChild.textContent);
  const modes = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
  table.tHead.rows[0].cells[2].querySelector("button").click();
  report.ascending = column();
  table.tHead.rows[0].cells[2].querySelector("button").click();
  report.descending = column();
  table.tHead.rows[0].cells[1].querySelector("button").click();
  report.modes = modes();
  report.sort = table.tHead.rows[0].cells[1].getAttribute("aria-sort");
  const players = [...document.querySelectorAll("audio")];
  await Promise.all(players.map((player) => new Promise((done) => {
    if (player.readyState >= 1) return done();
    player.addEventListener("loadedmetadata", done); player.addEventListener("error", done); player.load();
  })));
  report.durations = players.map((player) => player.duration);
  report.pictures = [...document.images].map((image) => image.naturalWidth);
  await players[0].play();
  report.playing = !players[0].paused;
  report.resources = performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 5));
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(report);
  document.body.append(out);
});
</script>
"""


def test_page_works_in_a_browser_from_a_file(run, tmp_path, dump_dom):
    report = write_report(run, tmp_path / "report", "Vita-Audio-PL: demo")
    page = tmp_path / "probe.html"
    page.write_text(report.page.read_text().replace("</body>", PROBE + "</body>"))
    found = re.search(r'<pre id="probe">(.*?)</pre>', dump_dom(page), re.S)
    assert found, "the page's scripts did not run to their end"
    seen = json.loads(found.group(1))
    assert seen["ascending"][-2:] == ["5.2 %", "7.8 %"] and seen["descending"][:2] == ["7.8 %", "5.2 %"]
    assert seen["modes"] == sorted(seen["modes"]) and seen["sort"] == "ascending"
    # 22 to compare the modes by, and the worst answer of each of 2 tasks in 3 modes
    assert len(seen["durations"]) == 22 + 6 and all(0.25 < seconds < 0.35 for seconds in seen["durations"])
    assert len(seen["pictures"]) == 5 and all(width > 900 for width in seen["pictures"])
    assert seen["playing"]
    assert set(seen["resources"]) <= {"data:"}


def test_page_holds_no_address_of_another_place(run, pictures):
    html = run_page(run, "demo", pictures)
    assert "http" not in html and 'src="/' not in html and "@import" not in html


def test_text_of_a_model_is_not_markup(run, pictures):
    html = run_page(run, "demo", pictures)
    assert "<b>the</b>" not in html and "&lt;b&gt;the&lt;/b&gt; dog &amp; the" in html


def test_both_colour_schemes_have_their_figures(pictures):
    assert list(pictures) == ["loss_align", "loss_mtp1", "loss_mtp10", "loss_sft", "wer_against_passes"]
    assert all(p.light.startswith(b"\x89PNG") and p.dark.startswith(b"\x89PNG") and p.light != p.dark
               for p in pictures.values())  # fmt: skip


def test_report_of_a_run_is_the_same_when_made_again(run, tmp_path):
    first, second = (write_report(run, tmp_path / name, "demo") for name in ("one", "two"))
    assert first.page.read_bytes() == second.page.read_bytes()
    assert sorted(p.name for p in first.sounds if p.name.startswith("s0")) == [
        "s0.boost.wav", "s0.expected_through_the_codec.wav", "s0.question.wav", "s0.turbo.wav", "s0.vanilla.wav",
    ]  # fmt: skip
    assert "| sft | boost |" in (tmp_path / "one" / "tables.md").read_text()


def test_published_figures_stand_beside_ours_with_what_keeps_them_apart(run, pictures):
    for path in (run.folder / "eval" / run.bench).glob("sft/test/asr.*/result.json"):
        figures = {"published": [{"system": "VITA-Audio-Turbo", "task": "asr", "metric": "wer", "value": 6.29}],
                   "incomparable": ["the normaliser is not stated"], "judge": "", "limited_to": 100}  # fmt: skip
        path.write_text(json.dumps(json.loads(path.read_text()) | figures))
    again = RunFiles.read(run.folder, run.bench)
    (row,) = published_table(again.results).rows
    assert [cell.text for cell in row[3:]] == ["VITA-Audio-Turbo", "6.29 %", "3.7 %", "5.2 %", "7.8 %"]
    reasons = reasons_against_comparing(again.results)
    assert reasons[0].startswith("profile strict") and "spoken_world test: the normaliser is not stated" in reasons
    assert "spoken_world test: only the first 100 utterances were evaluated" in reasons
    html = run_page(again, "demo", pictures)
    assert "Beside published figures" in html and "the normaliser is not stated" in html
    assert "Beside published figures" not in run_page(run, "demo", pictures)
