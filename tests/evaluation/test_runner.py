"""Evaluations that are killed, shared or repeated give the same files."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_until
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.identity import Identity, content_of
from vita_audio_pl.evaluation.items import sqa_item, tts_item
from vita_audio_pl.evaluation.records import Answer, Transcript
from vita_audio_pl.evaluation.runs.jobs import Decoding, Evaluation
from vita_audio_pl.evaluation.runs.ranks import Share
from vita_audio_pl.evaluation.runs.results import write_results
from vita_audio_pl.evaluation.runs.runner import run_evaluations, worker_pool
from vita_audio_pl.evaluation.scores.normalisers import plain
from vita_audio_pl.evaluation.scores.profiles import REFERENCE, STRICT
from vita_audio_pl.evaluation.scores.scoring import Scoring

SENTENCES = [f"the {size} cow number {number}" for number in range(12) for size in ("red", "big")]


class SpellingToolbox:
    """Speaks by spelling: the codes of an answer are its bytes. Every fifth answer is silent."""

    def __init__(self, log: Path, stop_at: str = ""):
        self.log, self.stop_at = log, stop_at

    def _note(self, what: str, ids):
        lines = [f"{what} {id}" for id in ids]
        with self.log.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))
        if self.stop_at in lines:
            time.sleep(PATIENCE)  # until it is killed

    def answer(self, model, decoding, batch_size, items):
        self._note("answer", [item.id for item in items])
        return [
            Answer(
                item.id, item.references[0], () if int(item.id) % 5 == 4 else tuple(item.references[0].encode()), 30, 8
            )
            for item in items
        ], {"processor": "toy"}

    def transcribe(self, model, judge, answers, voices):
        self._note("transcribe", [answer.id for answer in answers])
        return [
            Transcript(a.id, bytes(a.codes).decode().replace("number 3", "number 7"), len(a.codes)) for a in answers
        ]


def evaluation(
    folder: Path, model="m", listening="spelling", task="tts", limit=None, items=None, **changes
) -> Evaluation:
    items = items or tuple(tts_item(str(number), text) for number, text in enumerate(SENTENCES))[:limit]
    decoding = changes.get("decoding", Decoding("boost", (1, 10, 4, 10)))
    contents = content_of(items, {Path(path): path for item in items for path in item.prompt.audios})
    answering = {"pattern": list(decoding.pattern), "precision": "float32", **decoding.drawn}
    deciding = Identity(
        task, model, "", "codec", answering, "refuse", {"judge": listening}, {"normaliser": "plain"}, contents
    )
    made = Evaluation(
        Path("model"),
        "sft",
        "toy",
        "test",
        task,
        items,
        decoding,
        "spelling",
        deciding,
        folder / "eval",
        batch_size=5,
    )
    return replace(made, **changes)


def run(folder: Path, log: Path | None = None, workers=1, share=None, **changes):
    log = log or folder / "log"
    return run_all([evaluation(folder, **changes)], SpellingToolbox(log), workers, share)[0]


def run_all(evaluations, toolbox, workers=1, share=None):
    with worker_pool(toolbox, workers) as calls:
        return run_evaluations(evaluations, calls, share)


def report(record) -> dict[str, bytes]:
    record.refresh()
    write_results(record, Scoring(plain), {})
    return {path.name: path.read_bytes() for path in record.evaluation.folder.glob("[ru]*") if path.suffix != ".wav"}


def test_silent_answers_stay_in_the_denominator(tmp_path):
    result = write_results(run(tmp_path), Scoring(plain), {})
    # 24 sentences of 5 words; ids 4, 9, 14, 19 are silent (20 deletions), "number 3" (ids 6, 7) is misheard once each
    assert result["silent"] == 4
    assert result["metrics"]["speech_wer"]["value"] == pytest.approx(22 / 120, abs=1e-5)
    assert result["metrics"]["text_wer"]["value"] == 0
    assert result["backbone_passes"] == 8

    published = write_results(run(tmp_path), Scoring(plain, profile=REFERENCE), {})
    assert published["metrics"]["speech_wer"]["value"] == pytest.approx(2 / 100, abs=1e-5)
    assert published["left_out"] == 4
    (folder,) = (tmp_path / "eval").iterdir()
    assert (folder / "result.reference.json").exists() and (folder / "result.json").exists()


def test_worst_utterances_come_first(tmp_path):
    utterances = report(run(tmp_path))["utterances.jsonl"]
    rows = [json.loads(line) for line in utterances.split(b"\n") if line]
    assert [row["id"] for row in rows[:6]] == ["4", "9", "14", "19", "6", "7"]
    assert rows[0]["silent"] and rows[0]["transcript"] == ""


KILLED_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_runner import SpellingToolbox, evaluation, run_all
folder = Path(sys.argv[2])
run_all([evaluation(folder)], SpellingToolbox(folder / "log", stop_at=sys.argv[4]), workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize(("workers", "wanted"), [(1, "answer 10"), (2, "answer 10"), (1, "transcribe 10")])
def test_killed_evaluation_does_only_the_rest_and_reports_the_same(tmp_path, workers, wanted, ended):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    expected = report(run(whole))
    answers = evaluation(killed).folder / "answers.0.jsonl"
    command = [sys.executable, "-c", KILLED_RUN, str(Path(__file__).parent), str(killed), str(workers), wanted]
    process = subprocess.Popen(command)
    log = killed / "log"
    wait_until(lambda: log.exists() and f"{wanted}\n" in log.read_text(), wanted)
    wait_until(lambda: answers.exists() and b"\n" in answers.read_bytes(), "what was answered before it")
    workers_of_it = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert ended(workers_of_it)  # orphaned, they notice
    with answers.open("a") as file:
        file.write('{"id": "23", "text": "torn')  # a write that was cut short

    recorded = {json.loads(line)["id"] for line in answers.read_text().split("\n")[:-1]}
    assert recorded and (wanted.startswith("transcribe") or len(recorded) < 24)
    resumed = report(run(killed, log=killed / "second"))
    assert resumed == expected
    answered = {line.split()[1] for line in (killed / "second").read_text().splitlines() if line.startswith("answer")}
    assert answered == {str(number) for number in range(24)} - recorded


def test_ranks_share_the_work_and_results_do_not_depend_on_their_number(tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir(), shared.mkdir()
    expected = report(run(alone))
    first = run(shared, share=Share(0, 2))
    assert not first.complete()
    second = run(shared, share=Share(1, 2), log=shared / "log1")
    assert second.complete()
    assert report(second) == expected
    first.refresh()
    assert first.complete() and report(first) == expected
    assert "answer 5\n" not in (shared / "log").read_text() and "answer 5\n" in (shared / "log1").read_text()


def test_pool_of_two_gives_what_one_process_gives(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    assert report(run(one)) == report(run(two, workers=2))


def test_a_pool_goes_on_after_a_caller_that_did_not_take_all_results(tmp_path):
    with worker_pool(SpellingToolbox(tmp_path / "log"), 2) as run_pool:
        job = evaluation(tmp_path)
        items = [(job.model, job.decoding, 1, [item]) for item in job.items[:4]]
        results = run_pool("answer", items)
        next(results)
        results.close()
        assert len(list(run_pool("answer", items))) == 4


def test_equal_speech_is_judged_once(tmp_path):
    both = [evaluation(tmp_path), replace(evaluation(tmp_path), stage="mtp1", place=tmp_path / "again")]
    records = run_all(both, SpellingToolbox(tmp_path / "log"))
    listened = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("transcribe")]
    assert len(listened) == 20 and all(record.complete() for record in records)
    assert records[0].transcript_of("6") == records[1].transcript_of("6")


def test_another_model_does_not_inherit_answers_and_the_first_ones_stay(tmp_path):
    first = run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    other = run(tmp_path, log=tmp_path / "second", model="other")
    assert (tmp_path / "second").read_text().count("answer") == 24
    assert other.evaluation.folder != first.evaluation.folder
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_look_stands_beside_the_whole_and_gives_it_its_answers(tmp_path):
    look = run(tmp_path, limit=7)
    whole = run(tmp_path, log=tmp_path / "second", batch_size=3)
    done = (tmp_path / "second").read_text().split("\n")
    assert "answer 6" not in done and "answer 7" in done and "transcribe 6" not in done
    assert sorted(folder.name.rpartition("-")[0] for folder in (tmp_path / "eval").iterdir()) == [
        "tts.boost.24", "tts.boost.7",
    ]  # fmt: skip
    look.refresh()
    assert look.complete() and whole.complete() and len(look.answers) == 7
    smaller = run(tmp_path, log=tmp_path / "third", limit=3)  # a look after the whole generates nothing
    assert (
        smaller.complete() and "answer" not in (tmp_path / "third").read_text()
        if (tmp_path / "third").exists()
        else True
    )


def test_another_judge_hears_the_same_answers_anew(tmp_path):
    run(tmp_path)
    run(tmp_path, log=tmp_path / "second", listening="another")
    log = (tmp_path / "second").read_text()
    assert "answer" not in log and log.count("transcribe") == 20


def test_unreadable_audio_counts_as_a_wrong_answer_unless_the_published_protocol_is_asked_for(tmp_path):
    items = tuple(sqa_item(str(n), tmp_path / f"{n}.wav", ["in the barn"]) for n in range(4))

    class HalfDeaf(SpellingToolbox):
        def answer(self, model, decoding, batch_size, items):
            return [
                Answer(i.id, failure="no such file") if i.id == "2" else Answer(i.id, "in the barn", (1,))
                for i in items
            ], {}

        def transcribe(self, model, judge, answers, voices):
            return [Transcript(answer.id, "in the barn", 1.0) for answer in answers]

    job = evaluation(tmp_path, task="sqa", items=items)
    (record,) = run_all([job], HalfDeaf(tmp_path / "log"))
    strict = write_results(record, Scoring(plain, profile=STRICT), {})
    assert strict["failed"] == 1 and strict["metrics"]["text_accuracy"]["value"] == 0.75
    assert strict["metrics"]["speech_accuracy"]["value"] == 0.75
    published = write_results(record, Scoring(plain, profile=REFERENCE), {})
    assert published["metrics"]["text_accuracy"]["value"] == 1


def test_a_share_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="shard 2 of 2"):
        Share(2, 2)


def test_a_folder_with_other_files_is_left_as_it_is(tmp_path):
    folder = evaluation(tmp_path).folder
    folder.mkdir(parents=True)
    (folder / "precious.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds precious.jsonl, but no key.json of ours"):
        run(tmp_path)
    (folder / "key.json").write_text('{"key": "of another"}')
    with pytest.raises(UserError, match="belongs to another evaluation"):
        run(tmp_path)
    assert (folder / "precious.jsonl").read_text() == "{}\n"
