"""Processes that share an evaluation end together, one of them writes, and none waits for the dead."""

import threading
import time
from types import SimpleNamespace

import pytest

from tests.patience import PATIENCE, wait_until
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.runs import ranks
from vita_audio_pl.evaluation.runs.ranks import Meeting, Share

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_PROCID",
             "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")  # fmt: skip


def set_variables(monkeypatch, environment):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "29500"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
    ],
)
def test_variables_that_another_launch_left_are_named_before_anybody_waits(monkeypatch, environment):
    set_variables(monkeypatch, environment)
    rank, ranks = list(environment.items())[:2]
    with pytest.raises(UserError, match=f"{rank[0]}={rank[1]} and {ranks[0]}={ranks[1]} .* is not set, as a launcher"):
        Share.of_environment()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, (1, 3)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        # srun's task has a step; a batch script has the job's variables alone, and is one process
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),
    ],
)
def test_a_process_knows_its_part_from_torchrun_or_srun(monkeypatch, environment, expected):
    set_variables(monkeypatch, environment)
    share = Share.of_environment()
    assert (share.rank, share.ranks) == expected
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK=first, which is not a number"):
        Share.of_environment()


def meeting(folder, rank, **settings):
    return Meeting(folder, Share(rank, 3), every=0.02, **settings)


def in_threads(*work):
    """Runs functions at the same time; what each returned or raised."""
    found = [None] * len(work)

    def run(number):
        try:
            found[number] = work[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a rank never ended"
    return found


def test_ranks_end_when_the_results_are_there_and_not_before(tmp_path):
    done, order = [], []

    def rank(number):
        with meeting(tmp_path, number) as others:
            time.sleep(0.1 * number)
            done.append(number)
            if number:
                others.wait_for_results(lambda: False, "the results")
            else:
                others.wait_for_all(lambda: len(done) == 3, "the answers")
                order.append("results")
        order.append(number)

    assert in_threads(*(lambda n=n: rank(n) for n in range(3))) == [None] * 3
    assert order[0] == "results" and sorted(order[1:]) == [0, 1, 2]


def test_a_rank_that_fails_ends_the_others_with_its_sentence(tmp_path):
    def failing():
        with meeting(tmp_path, 1):
            time.sleep(0.3)
            raise UserError("the recording x.wav cannot be read")

    def waiting(rank):
        with meeting(tmp_path, rank) as others:
            others.wait_for_all(lambda: False, "the answers") if not rank else others.wait_for_results(
                lambda: False, "it"
            )

    first, _, last = in_threads(lambda: waiting(0), failing, lambda: waiting(2))
    assert "rank 1 of 3 failed: the recording x.wav cannot be read; so the answers are not complete" in str(first)
    assert "rank 0 of 3 failed: rank 1 of 3 failed" in str(last)


def test_a_rank_without_a_sign_is_named_while_the_work_of_the_living_is_waited_for(tmp_path, monkeypatch):
    order, living = [], meeting(tmp_path, 1)
    # the time is counted in signs of the rank that lives, which may be slow
    clock = SimpleNamespace(monotonic=lambda: living._beats + 100 * len(order), sleep=time.sleep)
    monkeypatch.setattr(ranks, "time", clock)

    def alive():
        with living:
            wait_until(lambda: living._beats > 30, "thirty signs")
        order.append("ended")

    def waiting():
        with meeting(tmp_path, 0, silence=10) as others, pytest.raises(UserError, match="rank 2 has not responded"):
            others.wait_for_all(lambda: False, "the answers")
        order.append("refused")

    assert in_threads(waiting, alive) == [None, None] and order == ["ended", "refused"]


def test_what_an_earlier_launch_left_is_no_sign_of_this_one(tmp_path):
    with pytest.raises(UserError, match="gone"), meeting(tmp_path, 1):
        raise UserError("gone")
    with meeting(tmp_path, 0):
        pass
    with meeting(tmp_path, 2, silence=0.3) as others, pytest.raises(UserError, match="rank 0 has not responded"):
        others.wait_for_results(lambda: False, "the results")
    with meeting(tmp_path, 0, silence=0.3) as others, pytest.raises(UserError, match="has not responded"):
        others.wait_for_all(lambda: False, "the answers")
    with meeting(tmp_path, 2) as others:  # all that was to do is done, so nobody is waited for
        others.wait_for_results(lambda: True, "the results")


def test_one_process_alone_waits_for_nobody_and_leaves_nothing(tmp_path):
    with Meeting(tmp_path, Share()) as others:
        others.wait_for_all(lambda: True, "the answers")
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_nobody_joins_says_so_soon_and_goes_on_waiting(tmp_path, monkeypatch):
    """Variables of a launch that are left in a shell look like those of ranks that come late."""
    said, sentences = threading.Event(), []
    monkeypatch.setattr(ranks, "_ALONE", 0.02)
    monkeypatch.setattr(ranks, "print_now", lambda sentence: (sentences.append(sentence), said.set()))
    set_variables(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2"})
    with Meeting(tmp_path, Share(0, 2, launch="a"), every=0.01):
        assert said.wait(PATIENCE)
    assert len(sentences) == 1 and "end it, and unset RANK, WORLD_SIZE" in sentences[0]
