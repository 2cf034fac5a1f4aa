"""Every mistake on the command line is one sentence and exit status 2."""

import subprocess
import sys

import pytest

from tests.patience import PATIENCE
from vita_audio_pl import export, prepare, train


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the entry point in an empty directory: exit status, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        with pytest.raises(SystemExit) as end:
            train.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("stage.stepz=3", "no setting 'stage.stepz'"),
        ("+stage.stepz=3", "no setting 'stage.stepz'; did you mean 'stage.steps'?"),
        ("steps=3", "no setting 'steps'; did you mean 'stage.steps'?"),
        ("stage.lr=3", "no setting 'stage.lr'; did you mean 'stage.learning_rate'?"),
        ("batch_size=3", "no setting 'batch_size'; did you mean 'stage.rows_per_step'?"),
        ("optim.warmup_steps=3", "did you mean 'optim.schedule.warmup_share'?"),
        ("stage=mtp11", "choose one of: align, chain, dpo, mtp1, mtp10, sft"),
        ("trainer.devices=two", "could not be converted to Integer"),
        ("stage.steps=0", "stage.steps is 0"),
        ("text_audio_interval_ratio=[1,2]", "audio run below 3"),
        ("text_audio_interval_ratio=[1,10,4]", "text_audio_interval_ratio"),
        ("decode_pattern=[0,10]", "decode_pattern"),
        ("stage.sequence_length=4", "cannot hold a conversation"),
        ("encoder.folder=x", "takes audio codes and has no encoder"),
        ("per_stage.mtp2.steps=3", "no setting 'per_stage.mtp2'"),
        ("per_stage.align.stepz=3", "no setting 'per_stage.align.stepz'"),
        ("trainer.devices=2", "one device"),
        ("stage=[", "'stage=[' cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(mistake, says, run):
    status, _, error = run(mistake)
    assert status == 2
    assert says in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_help_names_every_stage_and_setting_and_leaves_no_files(run, tmp_path):
    status, text, _ = run("--help")
    assert status == 0
    for expected in (
        "stage: align, chain, dpo, mtp1, mtp10, sft",
        "text_audio_interval_ratio=",
        "stage=chain",
        "init_from",
    ):
        assert expected in text
    assert not list(tmp_path.iterdir())


def test_a_missing_parent_names_the_command_that_makes_it(run):
    status, _, error = run("stage=mtp10")
    assert status == 2
    assert "python -m vita_audio_pl.train stage=mtp1" in error and "with_parents=true" in error


def test_what_can_be_known_before_the_world_is_made_is_said_before(run, tmp_path):
    status, _, error = run("stage.mixture=nope")
    assert (status, list(tmp_path.glob("data"))) == (2, []) and "there is no mixture 'nope'" in error


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (export, "the setting 'target' has no value: give target=... on the command line"),
        (prepare, "there is no source 'librispech'"),
    ],
)
def test_the_first_thing_that_is_missing_is_named(command, says, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", [command.__name__, "source=librispech", *(["root=x"] if command is prepare else [])]
    )
    with pytest.raises(SystemExit):
        command.main()
    assert says in capsys.readouterr().err


def test_the_module_runs_as_a_command_from_any_directory(tmp_path):
    command = [sys.executable, "-m", "vita_audio_pl.train", "stage.stepz=3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: there is no setting")
