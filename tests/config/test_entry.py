"""Every mistake on the command line is one sentence and exit status 2."""

import os
import subprocess
import sys

import pytest

from tests.patience import PATIENCE
from vita_audio_pl import export, prepare, train
from vita_audio_pl.config.entry import run_entry_point, typed_in_utf8
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.options import GenerateConfig


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
        ("encoder.folder=.", "takes audio codes and has no encoder"),
        ("per_stage.mtp2.steps=3", "no setting 'per_stage.mtp2'"),
        ("per_stage.align.stepz=3", "no setting 'per_stage.align.stepz'"),
        ("trainer.devices=2", "one device"),
        ("model.pretrained=no/where", "there is no folder no/where"),
        ("data.tokenizer_folder=no/where", "data.tokenizer_folder is given, and data.shards is not"),
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


def test_text_is_utf_8_whatever_the_locale_and_names_of_files_are_the_bytes_that_were_typed():
    script = "import sys; from vita_audio_pl.config.entry import typed_in_utf8; print(*map(ascii, typed_in_utf8(sys.argv[1:])))"
    typed = [b"text=\xc5\xbc", b"audio=\xc5\xbc.wav"]
    plain = {**os.environb, b"LC_ALL": b"C", b"PYTHONUTF8": b"0", b"PYTHONCOERCECLOCALE": b"0"}
    ended = subprocess.run([sys.executable, "-c", script, *typed], env=plain, capture_output=True, timeout=PATIENCE)
    assert ended.stdout == rb"'text=\u017c' 'audio=\udcc5\udcbc.wav'" + b"\n"
    with pytest.raises(UserError, match="what is given as text is not UTF-8"):
        typed_in_utf8(["text=\udce9"])


def test_what_will_be_read_must_be_there_before_anything_starts(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate", "model=m", "task=text", "codec_folder=no/where"])
    with pytest.raises(SystemExit) as end:
        run_entry_point(lambda config: pytest.fail("started"), "generate", GenerateConfig, own=("model",))
    assert end.value.code == 2
    assert "codec_folder is 'no/where', and there is no such file or folder" in capsys.readouterr().err
