"""An ablation's figures: means and intervals over seeds, differences that are any, costs, the first sound."""

import json

import pytest
from made_up_experiment import CHOICES, write_experiment

from vita_audio_pl.inference import streaming
from vita_audio_pl.reporting.experiment import first_sound as first_sounds
from vita_audio_pl.reporting.experiment.cost import cost_sentences, cost_table, sweep_over_arm
from vita_audio_pl.reporting.experiment.figures import experiment_pictures, front
from vita_audio_pl.reporting.experiment.files import ExperimentFiles
from vita_audio_pl.reporting.experiment.first_sound import first_sound
from vita_audio_pl.reporting.experiment.summary import headline
from vita_audio_pl.reporting.experiment.tables import differences_by_seed, heads_table, results_over_seeds
from vita_audio_pl.reporting.seeds import over_seeds


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> ExperimentFiles:
    return ExperimentFiles.read(write_experiment(tmp_path_factory.mktemp("runs")))


def row(table, *labels: str) -> dict:
    found = next(row for row in table.rows if tuple(cell.text for cell in row[: len(labels)]) == labels)
    return dict(zip(table.headers, found, strict=True))


def change(path, **facts) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_interval_over_three_seeds_is_students_t_within_what_can_be():
    found = over_seeds([0.10, 0.12, 0.14])
    half = 4.303 * 0.02 / 3**0.5
    assert (found.mean, *found.interval) == pytest.approx((0.12, 0.12 - half, 0.12 + half))
    assert over_seeds([0.0, 0.01, 0.02], 0.0, 1.0).interval[0] == 0
    assert over_seeds([1.0, 0.99, 0.98], 0.0, 1.0).interval[1] == 1
    assert over_seeds([]) is None


def test_one_seed_and_seeds_that_agree_say_nothing_of_chance():
    samples = ([0.5], [0.1 + 0.2, 0.3], [-1.0, 4.0], [3.0, 3.1, 3.2])
    told = {found.significant: found.interval for found in map(over_seeds, samples)}
    assert list(told) == ["one seed", "no spread", "no", "yes"]
    assert told["one seed"] is None and told["no spread"] is None


def test_table_has_means_over_seeds_spoken_answers_and_speed_with_the_published_cost_of_a_head(files):
    table = results_over_seeds(files, "test")
    own = row(table, "every_head", "own")
    assert own["TTS WER"].value == pytest.approx(0.12) and own["TTS WER"].detail == "9.5 to 14.5"
    assert own["Spoken QA, speech"].text == "50.0 %" and own["Spoken QA, speech"].detail == "no spread"
    assert own["Spoken QA, WER of the speech"].text == "12.0 %" and own["Seeds"].text == "3"
    assert own["Speed-up, projected"].value == pytest.approx(46 / (12 + 0.11 * 34))
    # turbo+verify drafts as own+verify does, and is no row of its own
    assert len(table.rows) == 4 * len(CHOICES) and table.caption.startswith("turbo+verify is not shown")


def test_headline_has_spoken_answers_and_the_number_of_seeds(files):
    told = headline(files, "test")
    assert told[1].startswith("every_head, mode own, 3 seeds: TTS WER 12.0 % (9.5 to 14.5), spoken QA in speech 50.0 %")
    assert "first codes after 2.10 backbone passes" in told[1]
    against = next(one for one in told if one.startswith("distil against"))
    assert "over the 3 common seeds: TTS WER -1.0 points (no spread), spoken QA in speech +0.0 points" in against


def test_differences_are_paired_by_seed_and_those_without_spread_claim_nothing(files):
    table = differences_by_seed(files, "test")
    told = {choice: row(table, choice, "own", "TTS WER") for choice in list(CHOICES)[1:]}
    assert {choice: cells["Beyond chance"].text for choice, cells in told.items()} == {
        "served_slots": "yes", "audio_only": "no", "distil": "no spread",
    }  # fmt: skip
    assert told["distil"]["Difference"].text == "-1.0" and told["distil"]["Difference"].detail == "no spread"
    served = told["served_slots"]
    assert served["Difference"].value == pytest.approx(served["Its mean"].value - served["every_head's"].value)
    assert served["Common seeds"].text == "3"


def test_intervals_that_could_not_differ_are_not_counted(files):
    """Left: TTS and the WER of spoken answers, in own and turbo, of three arms; a third of them has no spread."""
    table = differences_by_seed(files, "test")
    assert {(cells[1].text, cells[2].text) for cells in table.rows} == {
        (mode, name) for mode in ("own", "turbo") for name in ("TTS WER", "Spoken QA, WER of the speech")
    }
    assert table.caption.startswith("4 of 8 intervals leave zero out; one in twenty, here 0.4,")
    equal = table.caption.partition("Left out, being equal in all arms of every seed: ")[2]
    for name in (
        "TTS WER in vanilla",
        "TTS WER in own+verify",
        "Spoken QA, speech in own",
        "Speed-up, projected in own+verify",
    ):
        assert name in equal


def test_a_verified_mode_that_has_vanillas_rates_is_compared_once(tmp_path):
    """Where arms differ as Vanilla, their verified answers differ alike, and that is one finding, not two."""
    folder = write_experiment(tmp_path, seeds=(1, 2))
    for mode in ("vanilla", "own+verify", "turbo+verify"):
        for seed in (1, 2):
            path = folder / f"distil-seed{seed}/eval/spoken_world/mtp10/test/tts.{mode}/utterances.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            rows[0]["scores"]["speech_wer"]["errors"] += 100 * seed
            path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    table = differences_by_seed(ExperimentFiles.read(folder), "test")
    assert row(table, "distil", "vanilla", "TTS WER")["Beyond chance"].text == "no"
    assert "TTS WER in own+verify (as in vanilla)" in table.caption
    assert not any(cells[1].text == "own+verify" for cells in table.rows)


def test_heads_are_compared_by_held_out_accuracy(files):
    cells = row(heads_table(files), "mtp10", "served_slots")
    assert cells["Mean of the heads"].value == pytest.approx(0.9 - 0.152 - 0.045)
    assert cells["First head"].value == pytest.approx(0.9 - 0.152) and cells["Last head"].value == pytest.approx(0.658)
    assert cells["Against every_head"].text == "-3.2" and cells["Beyond chance"].text == "yes"
    text = experiment_pictures(files, "test")["curves_mtp10"].text
    assert "held-out accuracy at the end" in text and "in training" not in text


def test_the_cost_of_a_sweep_is_told_in_mean_arms(files):
    """align 300 once, mtp10 three times 102 and once 202, over arms that cost 402, 402, 402 and 502 alone."""
    assert sweep_over_arm(files).mean == pytest.approx((300 + 3 * 102 + 202) / ((3 * 402 + 502) / 4), rel=0.01)
    text = " ".join(cost_sentences(files))
    assert "align made by objective/every_head-seed1 was reused by 3 arms" in text
    assert "1.89 times what their mean arm costs alone (over the 3 seeds that all arms have; 95 % interval" in text
    made_here = row(cost_table(files), "distil")["of that made here"]
    assert made_here.value == pytest.approx(202) and made_here.detail == "200 to 204"
    assert "The machine was shared" not in text


def test_stages_that_waited_for_others_are_named_with_their_cost(tmp_path):
    folder = write_experiment(tmp_path, seeds=(1,))
    path = folder / "distil-seed1" / "arm.json"
    stages = json.loads(path.read_text())["stages"]
    stages[1]["wall_seconds"] = 603.0
    change(path, stages=stages)
    files = ExperimentFiles.read(folder)
    (told,) = [one for one in cost_sentences(files) if one.startswith("The machine was shared")]
    assert "in mtp10 of objective/distil-seed1 (3.0). " in told
    assert row(cost_table(files), "distil")["Wall s per CPU s of a core, at most"].text == "3.0"
    manifest = folder / "distil-seed1" / "mtp10" / "model" / "manifest.json"
    change(manifest, config={"trainer": {"accelerator": "cpu", "devices": 2, "threads": 1}})  # each had half of them
    assert "in mtp10 of objective/distil-seed1 (6.0). " in " ".join(cost_sentences(ExperimentFiles.read(folder)))
    change(manifest, config={"trainer": {"accelerator": "gpu"}})
    assert "The machine was shared" not in " ".join(cost_sentences(ExperimentFiles.read(folder)))


@pytest.mark.parametrize(
    ("ratio", "pattern", "heads", "passes", "seconds"),
    [
        ([1, 10, 4, 10], [1, 10, 4, 10], 10, 1 + 10 * 0.11, 0.64),  # Boost
        ([1, 4, 3, 8, 4, 10], [1, 4, 3, 8, 4, 10], 10, 1 + 4 * 0.11, 0.16),  # Balance
        ([4, 10], [4, 10], 10, 4 + 10 * 0.11, 0.64),
        ([1, 10, 4, 10], [1, 10, 4, 10], 5, 2 + 9 * 0.11, 0.64),  # the backbone passes between
        ([4, 10], [1, 10], 10, 2 + 20 * 0.11, 0.64),  # the second pass hands out its ten heads' tokens, too
        ([1, 40], [1, 10], 10, 2 + 20 * 0.11, 1.28),  # 16 codes of 38 are played before the span ends
        ([1, 10, 4, 10], [8192, 0], 10, 11, 0.64),
    ],
)
def test_the_first_sound_comes_when_its_span_can_be_played(tmp_path, ratio, pattern, heads, passes, seconds):
    arm = write_experiment(tmp_path, seeds=(1,)) / "every_head-seed1"
    change(arm / "mtp10/model/manifest.json", text_audio_interval_ratio=ratio, n_heads=heads)
    change(arm / "eval/spoken_world/mtp10/test/tts.own/result.json", pattern=pattern)
    arm = ExperimentFiles.read(arm.parent).arms[0]
    found = first_sound(arm, "own", "test")
    assert (found.passes, found.seconds) == pytest.approx((passes, seconds))
    assert first_sound(arm, "own+verify", "test") is None
    assert first_sounds.CODES_PER_CHUNK == streaming.CODES_PER_CHUNK


def test_the_front_has_what_no_point_beats_in_both():
    points = [(1.0, 8.0), (2.0, 8.0), (1.5, 9.0), (3.0, 30.0), (5.0, 30.0), (6.0, 80.0), (5.5, 90.0)]
    assert front(points) == [(2.0, 8.0), (5.0, 30.0), (6.0, 80.0)]
