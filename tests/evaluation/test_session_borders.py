"""What an evaluation refuses, leaves out or waits for before it answers: outputs, models without heads, other writers, files of kernels."""

import json
import os
import shutil
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.patience import PATIENCE, wait_until
from vita_audio_pl import evaluate as evaluate_command
from vita_audio_pl.config.decoding import Sampling
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.runs import evaluate as session
from vita_audio_pl.evaluation.runs.evaluate import evaluation_keys, run_session
from vita_audio_pl.evaluation.runs.plan import plan_evaluations
from vita_audio_pl.evaluation.runs.ranks import Share, sole_writer
from vita_audio_pl.evaluation.settings import SuiteConfig, SuiteEntry
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.kernels import Kernels
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.storage.lease import hold


@pytest.mark.parametrize("output", ["a file", "a file/results", "/dev/full"])
def test_an_output_that_is_no_folder_is_refused_before_the_first_answer(config, tmp_path, monkeypatch, output):
    monkeypatch.setattr(session.ModelToolbox, "answer", lambda *work: pytest.fail("it answered"))
    (tmp_path / "a file").write_text("mine")
    with pytest.raises(UserError, match="output is .* is not a folder"):
        run_session(replace(config, task="text", output=str(tmp_path / output)))
    assert (tmp_path / "a file").read_text() == "mine"


def test_a_codec_that_cannot_be_read_is_refused_before_the_first_answer(config, tmp_path, monkeypatch):
    monkeypatch.setattr(session.ModelToolbox, "answer", lambda *work: pytest.fail("it answered"))
    shutil.copytree(Path(config.model) / "codec", tmp_path / "codec")
    weights = (tmp_path / "codec/codec.safetensors").read_bytes()
    (tmp_path / "codec/codec.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="codec.safetensors is damaged"):
        run_session(replace(config, task="tts", codec_folder=str(tmp_path / "codec")))


@pytest.fixture
def headless(config, tmp_path):
    """The model's backbone alone, as the stage `align` of the same run; its folder still names the pattern to be trained for."""
    whole = tmp_path / "w/runs/r/sft/model"
    model = tmp_path / "w/runs/r/align/model"
    backbone = load_model(whole).config.backbone
    save_released(
        SpeechLM(SpeechLMConfig(backbone, 0)).eval(),
        model,
        decode_pattern=[1, 10, 4, 10],
        first_code=json.loads((whole / "config.json").read_text())["speech_token_offset"],
    )
    for name in ("tokenizer", "codec"):
        shutil.copytree(whole / name, model / name)
    (model / "manifest.json").write_text(
        json.dumps(json.loads((whole / "manifest.json").read_text()) | {"stage": "align"})
    )
    return replace(config, model=str(model), task="text", controls=0)


@pytest.mark.parametrize("asked", [{"mode": "boost"}, {"verify": "greedy"}, {"mode": "all", "verify": "greedy"}])
def test_a_mode_that_needs_heads_is_refused_where_it_is_asked_for_by_name_and_there_are_none(headless, asked):
    with pytest.raises(UserError, match="this model has none, so it would answer as in Vanilla"):
        evaluation_keys(replace(headless, **asked))


def test_a_model_without_heads_is_evaluated_in_vanilla_alone_and_what_is_left_out_is_told(headless, tmp_path, capsys):
    results = run_session(replace(headless, mode="all", limit=2))
    results += run_session(replace(headless, mode="own", limit=2))
    assert [result["mode"] for result in results] == ["vanilla", "vanilla"]
    assert "align is not evaluated in turbo, boost, balance: it has no heads" in capsys.readouterr().err
    entries = [SuiteEntry("align", ["own", "turbo"], ["text"]), SuiteEntry("align", ["own"], ["text"], verify="greedy")]
    suite = replace(headless, model=None, run_name="r", suite=SuiteConfig("s", entries), limit=2)
    suite.paths.runs = str(tmp_path / "w" / "runs")
    assert [result["mode"] for result in run_session(suite)] == ["vanilla"]
    said = capsys.readouterr().err
    assert "not evaluated in turbo:" in said and "not evaluated in own+verify:" in said
    with pytest.raises(UserError, match="nothing is left to evaluate"):
        evaluation_keys(replace(suite, suite=SuiteConfig("s", entries[1:])))


def test_who_comes_second_waits_for_the_first_and_repeats_none_of_its_work(config, tmp_path, capfd):
    config = replace(config, task="text", limit=2)
    (evaluation,) = plan_evaluations(config)
    with hold(evaluation.folder, "rank0", "an evaluation"):
        second = get_context("fork").Process(target=run_session, args=(config,))
        second.start()
        said = ""

        def told():
            nonlocal said
            said += capfd.readouterr().err
            return "waiting" in said

        wait_until(told, "the second to say that it waits")
        assert f"{evaluation.folder} is in use by an evaluation (process {os.getpid()} on " in said
        assert not (evaluation.folder / "answers.0.jsonl").exists()
    second.join(PATIENCE)
    assert second.exitcode == 0 and len((evaluation.folder / "answers.0.jsonl").read_text().splitlines()) == 2


def test_ranks_of_a_second_launch_are_refused_and_other_ranks_are_not(config):
    (evaluation,) = plan_evaluations(config := replace(config, task="text", limit=2))
    with hold(evaluation.folder, "rank1", "an evaluation"):
        with sole_writer([evaluation.folder], Share(0, 2)):
            pass
        with (
            pytest.raises(UserError, match="is in use by an evaluation"),
            sole_writer([evaluation.folder], Share(1, 2)),
        ):
            pytest.fail("two processes write the records of one rank")


def test_a_file_of_kernels_is_read_before_anything_else_and_must_fix_what_it_is_to_fix(config, tmp_path, monkeypatch):
    file = tmp_path / "kernels.json"
    run_session(config := replace(config, task="text", limit=2))
    file.write_text("nonsense")
    with pytest.raises(UserError, match="kernels=.* must be auto"):
        run_session(replace(config, kernels=str(file)))  # though every answer is recorded
    file.write_text(json.dumps(Kernels().record()))
    monkeypatch.setattr(session.ModelToolbox, "answer", lambda *work: pytest.fail("it answered"))
    groups = replace(config, mode="boost", verify="groups", kernels=str(file))
    sampled = replace(groups, verify="sample", sampling=Sampling(temperature=1.0))
    for asked in (groups, sampled):
        with pytest.raises(UserError, match="has no costs of passes, by which heads draft under verify="):
            run_session(asked)
    for exact in (replace(groups, verify="greedy"), replace(groups, verify="sample")):
        keys = [evaluation_keys(exact)]
        for costs in ({"x": [1.0, 0.1, 0.1, 0.1]}, {"x": [1.0, 0.1, 9.0, 0.1]}):  # passes and seconds depend on them
            file.write_text(
                json.dumps(Kernels(passes={name: PassCosts(*given) for name, given in costs.items()}).record())
            )
            keys.append(evaluation_keys(exact))
        assert len(set(map(str, keys))) == 3
        file.write_text(json.dumps(Kernels().record()))
    seeded = replace(config, sampling=Sampling(seed=4))  # nothing is drawn
    assert evaluation_keys(seeded) == evaluation_keys(config)


@pytest.mark.parametrize("head", [0.0, 1e6])
def test_heads_that_drafted_nothing_are_told_of(config, monkeypatch, capsys, head):
    monkeypatch.setattr(Runtime, "costs", PassCosts(1.0, 0.0, head, 0.0))
    evaluate_command.evaluate(replace(config, task="text", limit=2, mode="turbo", verify="greedy"))
    told = "sft text turbo+verify: heads drafted nothing" in " ".join(capsys.readouterr().out.split())
    assert told == (head > 0)
