"""The page on one's own classes works as it is printed."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from toy import ToyData, toy_batch, toy_config, toy_data

from vita_audio_pl.codecs import load_codec, protocol
from vita_audio_pl.config import plugins
from vita_audio_pl.config.component import Custom, component, plain
from vita_audio_pl.config.fields import check_settings
from vita_audio_pl.data import readers
from vita_audio_pl.data.recipe import load_recipe
from vita_audio_pl.data.speaking import voice_facts
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.judges.choice import judge_facts, judge_maker, judge_name
from vita_audio_pl.training.checks import check_train_config
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.stage.train import run_identity, stage_module, train_stage
from vita_audio_pl.training.stage.trainer import checked_extra

DOC = (Path(__file__).parents[2] / "docs" / "extend.md").read_text(encoding="utf-8")
EXTRAS = re.findall(r"'\+((?:callbacks|logger)\.extra[^']*)'", DOC)


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    """The page's package, importable; what it registers is forgotten afterwards."""
    (tmp_path / "my_lab.py").write_text(re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(protocol, "_LOADERS", dict(protocol._LOADERS))
    monkeypatch.setattr(readers, "_KINDS", dict(readers._KINDS))
    monkeypatch.setenv("VITA_AUDIO_PL_PLUGINS", "")  # and what the test tells later processes is taken back
    yield tmp_path
    sys.modules.pop("my_lab", None)


def test_a_stage_trains_with_an_optimiser_a_callback_and_a_logger_from_outside(my_lab):
    node = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)[0])["optimizer"]
    own = [f"+optim.optimizer.{key}={value}" for key, value in node.items()]
    extras = [f"+{extra}" for extra in EXTRAS]
    config = toy_config(my_lab / "runs", "optim.optimizer=null", *own, *extras, "+trainer.extra.detect_anomaly=true")
    check_settings(config)
    model = train_stage(config, toy_data(my_lab, ToyData()))
    rows = [json.loads(line) for line in (model.parent / "figures.jsonl").read_text().splitlines()]
    assert any("train/loss" in row for row in rows) and any("val/loss" in row for row in rows)
    assert not torch.is_anomaly_enabled()
    identity = json.loads((model.parent / "identity.json").read_text())
    assert identity["optim.optimizer._target_"] == "my_lab.SignSGD"
    assert not [key for key in identity if "extra" in key]


def test_a_stage_trains_heads_with_an_objective_and_an_engine_from_outside(my_lab, monkeypatch):
    objective = {"_target_": "my_lab.FirstTokens", "tokens": 6, "weight": 0.5}
    own = ["~objective", *(f"+objective.{key}={value}" for key, value in objective.items())]
    engine = [
        "trainer.engine=null",
        *(f"+trainer.engine.{e}" for e in ("_target_=my_lab.ValueClipping", "largest=1e-9")),
    ]
    align = toy_config(my_lab / "runs", *own, *engine)
    model = train_stage(align, toy_data(my_lab, ToyData()))
    config = toy_config(my_lab / "runs", "stage=mtp1", *own, *engine)
    check_train_config(config)
    module, _ = stage_module(config, toy_data(my_lab, ToyData()), model)
    assert type(module.objective).__name__ == "Beginnings" and module.objective.weight == 1.0  # the backbone is frozen
    counts = module.speech_lm(toy_batch(0, 0, slice(0, 4), 4), module.objective, score_frozen_backbone=True).counts
    assert counts[0] > counts[1] > 0
    module.speech_lm(toy_batch(0, 0, slice(0, 4), 4), module.objective).total.backward()
    module.engine.clip(module.speech_lm, torch.optim.SGD(module.speech_lm.heads.parameters()), 1.0)
    assert all(p.grad.abs().max() <= 1e-9 for p in module.speech_lm.heads.parameters() if p.grad is not None)
    assert plain(config)["trainer"]["engine"] == {"_target_": "my_lab.ValueClipping", "largest": 1e-9}
    identity = run_identity(config, toy_data(my_lab), StageManifest.of(model))
    assert (identity["objective._target_"], identity["objective.tokens"]) == ("my_lab.FirstTokens", 6)
    for wrong, says in (
        ("objective.tokens=many", "objective.tokens"),
        ("+objective.tokns=3", "did you mean 'objective.tokens'"),
        ("trainer.engine=fsdp2", "trainer.engine is 'fsdp2': give the path of a class"),
    ):
        with pytest.raises(UserError, match=says):
            toy_config(my_lab / "runs", *own, wrong)
    with pytest.raises(UserError, match="my_lab.SignSGD must derive from .*ObjectiveSettings"):
        toy_config(my_lab / "runs", "~objective", "+objective._target_=my_lab.SignSGD")


def test_a_judge_from_outside_listens(my_lab):
    node = yaml.safe_load(re.findall(r"'judge=({.*?})'", DOC)[0].replace(":", ": "))
    judge = component(node, "judge")
    assert judge_name(judge) == "Counting"
    listen = judge_maker(own=judge)("Counting").transcribe
    assert listen([np.zeros(16000), np.zeros(32000)], 16000) == ["boop", "boop boop"]
    (my_lab / "words").write_text("boop")
    of_file = component(node | {"word": str(my_lab / "words")}, "judge")
    facts = judge_facts(of_file)
    (my_lab / "words").write_text("bleep")
    assert (
        judge_facts(judge)
        == {"judge": "my_lab.Counting", "settings": {"word": "boop"}}
        != facts
        != judge_facts(of_file)
    )
    with pytest.raises(UserError, match="no judge 'wisper'; choose one of .*judge._target_="):
        judge_maker()("wisper")


def test_a_voice_from_outside_speaks(my_lab):
    voice = component(yaml.safe_load(re.findall(r"'tts=({.*?})'", DOC)[0].replace(":", ": ")), "tts")
    assert voice_facts(voice) == {"kind": "my_lab.Hum", "hertz": 300.0}
    assert len(voice.build().speak("moo")[0]) == 2400
    with pytest.raises(UserError, match="my_lab.Counting has no method speak"):
        voice_facts(component({"_target_": "my_lab.Counting"}, "tts"))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"api_key": "x"}, "api_key"),
        ({"apiKey": "x"}, "apiKey"),
        ({"apikey": "x"}, "apikey"),
        ({"headers": {"Authorization": "x"}}, "headers.Authorization"),
        ({"servers": [{"url": "a"}, {"url": "b", "access_token": "x"}]}, "servers.1.access_token"),
        ({"inner": Custom("my_lab.Hum", {"PASSWORD": "x"})}, "inner.PASSWORD"),
    ],
)
def test_a_secret_among_settings_of_ones_own_is_written_nowhere(my_lab, settings, name):
    for facts, where, path in ((voice_facts, "tts", "my_lab.Hum"), (judge_facts, "judge", "my_lab.Counting")):
        with pytest.raises(UserError, match=f"{where}.{name} is named like a secret"):
            facts(Custom(path, settings))
        assert "boop" in str(facts(Custom(path, {"word": "boop", "max_tokens": 3, "tokenizer": {"author": "b"}})))


def test_a_plugin_registers_a_codec_and_a_reader(my_lab):
    (my_lab / "codec").mkdir()
    (my_lab / "codec" / "codec.json").write_text('{"name": "beeps"}')
    with pytest.raises(UserError, match=r"'beeps', which is not known .*plugins=\[PACKAGE\]"):
        load_codec(my_lab / "codec")
    plugins.load_plugins(["my_lab"])
    assert load_codec(my_lab / "codec").encode([np.zeros(1600)])[0].tolist() == [0, 0]
    (my_lab / "proverbs.txt").write_text("Haste makes waste.\nPractice makes perfect.\n")
    (my_lab / "proverbs.yaml").write_text(re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)[1])
    reader = load_recipe(str(my_lab / "proverbs.yaml")).open(my_lab)
    said = [sample.conversation.messages[1].content for part in reader.parts() for sample in reader.read(part)]
    assert said == ["Haste makes waste.", "Practice makes perfect."]
    with pytest.raises(UserError, match="plugins: 'my_labb' cannot be imported"):
        plugins.load_plugins(["my_labb"])


@pytest.mark.parametrize(
    ("name", "says"),
    [("max_stepz", "did you mean"), ("max_steps", "give stage.steps"), ("callbacks", "give callbacks.extra")],
)
def test_arguments_of_lightning_that_we_own_are_refused_by_name(name, says):
    with pytest.raises(UserError, match=says):
        checked_extra({name: 1}, ["max_steps"])
