"""The page of a run, opened in a browser: everything is inside it, tables sort, players play."""

import json
import re
import shutil
from urllib.parse import unquote

from made_up_run import write_samples

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.reporting.run.page import run_page
from vita_audio_pl.reporting.run.published import published_table, reasons_against_comparing
from vita_audio_pl.reporting.run.result_page import write_result_pages
from vita_audio_pl.reporting.run.standing import measured, published_figures, standing_table
from vita_audio_pl.reporting.run.write import write_report
from vita_audio_pl.reporting.run_files import RunFiles

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
    # 22 to compare the modes by; the worst answer of each of 2 tasks in 3 modes, and the questions of one of them; one
    # prompt at 3 steps of training
    assert len(seen["durations"]) == 22 + 6 + 3 + 3 and all(0.25 < seconds < 0.35 for seconds in seen["durations"])
    assert len(seen["pictures"]) == 5 and all(width > 900 for width in seen["pictures"])
    assert seen["playing"]
    assert set(seen["resources"]) <= {"data:"}


def test_page_holds_no_address_of_another_place(run, pictures):
    html = run_page(run, "demo", pictures)
    assert "http" not in html and 'src="/' not in html and "@import" not in html


def test_text_of_a_model_is_not_markup(run, pictures):
    html = run_page(run, "demo", pictures)
    assert "<b>the</b>" not in html and "&lt;b&gt;the&lt;/b&gt; dog &amp; the" in html


def test_what_was_answered_in_training_stands_side_by_side_over_the_steps(run, pictures, tmp_path):
    html = run_page(run, "demo", pictures)
    section = re.search(r'<section id="samples">(.*?)</section>', html, re.S).group(1)
    assert "sft: 3 prompts at steps 100, 200, 300" in section and section.count("<audio") == 3
    assert re.findall(r"WER (\d+) %", section) == ["67", "33", "0"] * 2
    assert section.count(">wrong<") == 2 and section.count(">right<") == 1
    assert "<i>dog</i>" not in section and "&lt;i&gt;dog&lt;/i&gt;" in section
    for step in range(400, 1200, 100):
        write_samples(run.folder / "sft" / "samples" / f"step-{step:06d}", 0.0)
    assert "steps 100, 400, 800, 1100" in run_page(run, "demo", pictures)  # the first, the last, and some between
    for folder in (run.folder / "sft" / "samples").iterdir():
        shutil.rmtree(folder)
    assert "samples" not in re.findall(r'<section id="(\w+)"', run_page(run, "demo", pictures))


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
    assert "Compared with published figures" in html and "the normaliser is not stated" in html
    assert "Compared with published figures" not in run_page(run, "demo", pictures)


def test_every_evaluation_has_a_page_with_its_worst_utterances_first_and_sounds_that_are_there(run):
    bench = run.folder / "eval" / run.bench
    for path in bench.glob("sft/test/sqa.boost/result.json"):
        extra = {
            "silent": 0,
            "unfinished": 1,
            "failed": 0,
            "left_out": 0,
            "profile_differences": [],
            "limited_to": None,
        }
        path.write_text(json.dumps(json.loads(path.read_text()) | extra))
        page = path.with_suffix(".html")
    for path in bench.glob("*/*/*/result.json"):
        if not path.with_name("result.html").exists() and path.parent != page.parent:
            path.unlink()
    assert write_result_pages(bench) == [page]
    html = page.read_text()
    ids = re.findall(r'<span class="soft">(s\d)', html)
    assert ids == [row["id"] for row in map(json.loads, (page.parent / "utterances.jsonl").read_text().splitlines())]
    sounds = re.findall(r'<audio [^>]*src="([^"]+)"', html)
    assert len(sounds) == 6 and all((page.parent / unquote(sound)).is_file() for sound in sounds)
    assert "5 errors" not in html and "1 errors of 5" in html and "1 cut at the token limit" in html
    assert "&lt;b&gt;the&lt;/b&gt; dog" in html and "<b>the</b>" not in html
    before = page.read_bytes()
    write_result_pages(bench)
    assert page.read_bytes() == before


def result_on(folder, bench, task, split, mode, stage, profile="strict", **facts):
    """One result with a single figure of 5 %."""
    metric = {"asr": "wer", "tts": "speech_wer"}.get(task, "text_accuracy")
    figures = {
        "bench": bench,
        "task": task,
        "split": split,
        "mode": mode,
        "stage": stage,
        "profile": profile,
        "judge": "",
        "utterances": 9,
    }
    figures["metrics"] = {metric: {"value": 0.05, "low": 0.04, "high": 0.06, "utterances": 9}}
    suffix = "" if profile == "strict" else f".{profile}"
    path = folder / "eval" / bench / stage / split / f"{task}.{mode}" / f"result{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures | facts))


def test_a_run_stands_row_by_row_beside_the_published_tables(tmp_path):
    for profile in ("strict", "reference"):
        result_on(tmp_path, "seed_tts_en", "tts", "test", "turbo", "mtp10", profile, judge="whisper")
    result_on(tmp_path, "librispeech", "asr", "test-clean", "vanilla", "sft", limited_to=100, constrained=True)
    figures = published_figures()
    rows = standing_table(measured(tmp_path), figures, "sft", plus=False).rows
    assert (
        len(rows)
        == len(figures)
        == sum(path.read_text().count("{system:") for path in (asset_dir("conf") / "bench").glob("*.yaml"))
    )
    shown = {tuple(cell.text for cell in row[:4]): row[4:] for row in rows}
    speech = "error rate of the speech, as the judge transcribed it"
    published, strict, reference, apart = shown["seed_tts_en", "test", speech, "VITA-Audio-Turbo stage 3"]
    assert (published.text, strict.text, reference.text) == ("1.77 %", "5.0 %", "5.0 %")
    assert apart.text.startswith("judged by whisper; ")
    _, strict, reference, apart = shown["seed_tts_en", "test", speech, "VITA-Audio-Turbo stage 4"]
    assert strict.text == reference.text == "–" and "model=runs/RUN/sft bench=seed_tts_en" in apart.text
    heard = "error rate of the transcript"
    *_, apart = shown["librispeech", "test-clean", heard, "VITA-Audio-Vanilla"]
    assert apart.text.startswith("only scored by profile=strict") and "only the first 100 utterances" in apart.text
    assert "masks nothing" in apart.text
    *_, apart = shown["librispeech", "test-clean", heard, "VITA-Audio-Plus-Vanilla"]
    assert apart.text.startswith("the published system takes audio through a continuous encoder")
    *_, apart = shown["llama_questions", "test", "accepted answers, text", "GLM-4-Voice"]
    assert apart.text == "another system, for orientation"
    assert [row[3].text for row in rows[:3]] == [
        "VITA-Audio-Vanilla",
        "VITA-Audio-Plus-Vanilla",
        "VITA-Audio-Turbo stage 3",
    ]
