"""A person's own samples and a finished model: two commands' worth of calls, in this process."""

import csv
import itertools
import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
import toy
from rich.console import Console

from vita_audio_pl import own_data
from vita_audio_pl.codecs import MelVQ, MelVQConfig, write_wav
from vita_audio_pl.data.options import ExecutorOptions, PrepareConfig
from vita_audio_pl.data.prepared import Manifest, PreparedSource
from vita_audio_pl.data.readers.base import content_of, stamp_of
from vita_audio_pl.data.readers.jsonl import share_of
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.runs.jobs import bench_folder, stage_of
from vita_audio_pl.inference.loading import load_speech_model
from vita_audio_pl.model_names import named_model
from vita_audio_pl.models.families import family_of
from vita_audio_pl.notebook import train_config, train_stage
from vita_audio_pl.own_data import prepare_own_data
from vita_audio_pl.prepare import training_on
from vita_audio_pl.storage.model_folders import find_run, last_stage
from vita_audio_pl.text import TextTokenizer
from vita_audio_pl.training.finetune import choose, with_finetune
from vita_audio_pl.training.stage import checkpoint_model, hand_over
from vita_audio_pl.training.stage.starting_model import backbone_config
from vita_audio_pl.training.stage.train import find_parent

TOKENIZER = TextTokenizer.train(["the big red cow sees the small blue cat"], 300)
RATE, N_CODES = 16_000, 16


def tone(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.2 * np.sin(np.arange(RATE // 2) * rng.uniform(0.05, 0.3)) + rng.normal(0, 0.02, RATE // 2)).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A published-looking folder with a codec: the layout of Boost, random weights."""
    waves = [tone(seed) for seed in range(8)]
    return toy.published_folder(tmp_path_factory.mktemp("model"), TOKENIZER, waves, N_CODES)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Twelve samples of four tasks, one of them with a recording that is not there."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "a").mkdir()
    lines = []
    for number in range(12):
        write_wav(folder / "a" / f"{number}.wav", tone(number), RATE)
        (folder / "a" / f"{number}.txt").write_text(f"the cow {number}")
        audio, said = f"a/{number}.wav" if number != 5 else "a/gone.wav", f"the big red cow {number}"
        ask, answer, audios = [
            (f"Convert the text to speech.\n{said}", "<|audio|>", [audio]),
            ("Convert the speech to text.\n<|audio|>", said, [audio]),
            ("<|audio|>", f"{said}\n<|audio|>", [audio, audio]),
            (f"where is {said}", "in the tree", []),
        ][number % 4]
        messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages, "audios": audios}))
    (folder / "my.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def prepared(samples, model, out, **options):
    config = PrepareConfig(
        samples=str(samples), model=str(model), out=str(out), shards="", executor=ExecutorOptions(workers=1), **options
    )
    return prepare_own_data(config, Console(quiet=True))


def size(folder):
    return len(PreparedSource(folder))


@pytest.fixture(scope="module")
def mine(samples, model, tmp_path_factory):
    return prepared(samples / "my.jsonl", model, tmp_path_factory.mktemp("prepared") / "mine", held_out=0.2)


def test_samples_become_shards_with_a_dev_split_that_stays(mine, samples, model):
    split = size(mine / "shards/own"), size(mine / "shards/own.dev")
    assert sum(split) == 11 and 1 <= split[1] <= 3  # one recording is not there
    assert TextTokenizer.load(mine / "tokenizer").fingerprint == TOKENIZER.fingerprint
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*.tar")}
    assert prepared(samples / "my.jsonl", model, mine, held_out=0.2) == mine
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*.tar")} == before
    with pytest.raises(UserError, match="no file or folder"):
        prepared(samples / "none.jsonl", model, mine)


def test_recordings_with_texts_beside_them_are_samples_too(samples, model, tmp_path):
    out = prepared(samples / "a", model, tmp_path / "voice")
    assert size(out / "shards/own") + size(out / "shards/own.dev") == 12
    with pytest.raises(UserError, match="holds no recording .* beside a text of the same name"):
        prepared(model / "codec", model, tmp_path / "none")


def test_what_a_folder_of_recordings_holds_beside_pairs_is_named(model, tmp_path, capsys):
    folder = tmp_path / "voice"
    folder.mkdir()
    for name in ("a.wav", "B.WAV", "alone.wav", "blank.wav", "latin.wav"):
        write_wav(folder / name, tone(len(name)), RATE)
    for name in ("._a.wav", "._a.txt"):  # of a Mac
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "a.txt").write_text("the cow")
    (folder / "B.TXT").write_text("the big cow")
    (folder / "blank.txt").write_text(" \n\ufeff\n")
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    out = prepared(folder, model, tmp_path / "out", held_out=0.0)
    told = capsys.readouterr().out
    assert (
        "3 recordings are left out: alone.wav has no text beside it; blank.txt is empty; latin.txt is not UTF-8" in told
    )
    assert size(out / "shards/own") == 2


def test_a_recording_that_changes_under_its_name_is_encoded_again(model, tmp_path):
    for number in range(3):
        write_wav(tmp_path / f"voice/{number}.wav", tone(number), RATE)
        (tmp_path / f"voice/{number}.txt").write_text(f"the cow {number}")
    shards = prepared(tmp_path / "voice", model, tmp_path / "out", held_out=0.0) / "shards/own"
    before = [PreparedSource(shards).read(number).turns for number in range(3)]
    listed = stamp_of(tmp_path / "out/pairs.jsonl")
    write_wav(tmp_path / "voice/1.wav", tone(7), RATE)
    prepared(tmp_path / "voice", model, tmp_path / "out", held_out=0.0)
    after = [PreparedSource(shards).read(number).turns for number in range(3)]
    assert [str(one) == str(other) for one, other in zip(before, after, strict=True)] == [True, False, True]
    assert stamp_of(tmp_path / "out/pairs.jsonl") == listed  # or another job that reads it would call it changed


def test_recordings_are_known_by_every_byte_and_no_path_ends_the_command(tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(bytes(2**21))
    before = content_of(path, whole=True)
    path.write_bytes(bytes(2**20 - 2**16) + b"x" + bytes(2**20 + 2**16 - 1))
    assert content_of(path, whole=True) != before
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "a\0b", "lone\ud800.wav"):
        assert not re.match(r"\d", content_of(tmp_path / name, whole=True))


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("list.jsonl", b'[{"messages": []},\n{"messages": []}]', "is one list, .* jq -c '.\\[\\]' /.*/list.jsonl > /.*/list-lines.jsonl"),
        ("table.csv", b"audio,text\na.wav,hello\n", "is a table: describe its columns in a recipe"),
        ("lines.jsonl", b"\x1f\x8b\x08", "is compressed with gzip; unpack it first"),
    ],
)  # fmt: skip
def test_files_that_are_no_jsonl_are_a_sentence(name, content, says, model, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        prepared(tmp_path / name, model, tmp_path / "out")


def test_a_folder_prepared_for_another_codec_is_refused(samples, model, mine, tmp_path):
    MelVQ.fit([tone(seed) for seed in range(50, 58)], MelVQConfig(codebook_size=N_CODES), 0).save(tmp_path / "codec")
    with pytest.raises(UserError, match="was prepared for a model with another codec; give another out=DIR"):
        prepared(samples / "my.jsonl", model, mine, codec_folder=str(tmp_path / "codec"))


def test_a_bad_sample_that_is_drawn_for_validation_is_no_error(model, tmp_path):
    lines = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "in the tree"}]}
        for n in range(4)
    ]
    texts = [json.dumps(line) for line in lines]
    bads = (json.dumps({"messages": [{"role": "user", "content": f"no answer {n}"}]}) for n in itertools.count())
    bad = next(line for line in bads if share_of(line) < min(map(share_of, texts)))  # so it alone is drawn
    (tmp_path / "my.jsonl").write_text("\n".join([*texts, bad]) + "\n")
    out = prepared(tmp_path / "my.jsonl", model, tmp_path / "out")
    assert size(out / "shards/own") == 4 and (out / "mixture.yaml").is_file()
    for line, held_out in ((bad, 0.05), ("", 0.0)):  # an earlier share for validation is trained on then
        (tmp_path / "my.jsonl").write_text("\n".join(texts) + "\n")
        prepared(tmp_path / "my.jsonl", model, out)
        assert size(out / "shards/own") + size(out / "shards/own.dev") == 4
        (tmp_path / "my.jsonl").write_text("\n".join([*texts, line]) + "\n")
        prepared(tmp_path / "my.jsonl", model, out, held_out=held_out)
        assert size(out / "shards/own") == 4 and not (out / "shards/own.dev/manifest.json").exists()
    (out / "mixture.yaml").unlink()
    with pytest.raises(UserError, match="has no mixture.yaml, which preparing it ends with"):
        with_finetune([f"finetune={model}", f"shards={out}"])


def test_each_kind_of_data_and_model_is_told_a_command_that_trains_it(samples, mine, model, tmp_path):
    codes = [f"codes:{','.join(str((k * step) % N_CODES) for k in range(24))}" for step in (3, 5)]
    pair = {
        "messages": [{"role": "user", "content": "where is the cow"}],
        "chosen": "<|audio|>",
        "rejected": "<|audio|>",
    }
    pair["audios"] = codes
    lines = [json.dumps(pair | {"id": number}) for number in range(6)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    opinions = prepared(tmp_path / "pairs.jsonl", model, tmp_path / "opinions")
    plain = tmp_path / "plain"
    family_of(qwen := backbone_config(toy.toy_config(plain).model, TOKENIZER.vocabulary(32))).causal_lm(
        qwen
    ).save_pretrained(plain)
    TOKENIZER.save(plain)
    on_plain = prepared(samples / "my.jsonl", plain, tmp_path / "on_plain", codec_folder=str(model / "codec"))
    few = ["logger=csv", "stage.steps=1", "data.workers=0", "callbacks.progress_bar=false", "stage.rows_per_step=1"]
    few.append(f"paths.runs={tmp_path}/runs")
    ends = []
    for start, out in ((model, mine), (model, opinions), (plain, on_plain)):
        config = PrepareConfig(samples="", model=str(start), out=str(out), shards="")
        words = [word for word in shlex.split(training_on(config, out)) if word != "run_name=NAME"]
        made = train_stage(train_config(*with_finetune([*words, f"run_name={out.name}", *few])))
        ends.append((made.parent.name, load_speech_model(made).vocabulary.im_end in ends_of(made)))
    assert ends == [("sft", True), ("dpo", True), ("align", True)]


def ends_of(folder):
    """Tokens at which transformers ends an answer of a model."""
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    return [ends] if isinstance(ends, int) else ends


def test_a_source_that_is_missing_names_those_that_are_there(mine, model, tmp_path):
    with pytest.raises(
        UserError, match=rf"source=world_asr, or give stage.mixture={mine}/mixture.yaml for .* \(own\)$"
    ):
        Manifest.load(mine / "shards/world_asr")
    with pytest.raises(UserError, match=r"prepare source=world_asr$"):
        Manifest.load(tmp_path / "world_asr")
    with pytest.raises(UserError, match=r"samples=.*/my.jsonl model=.* out=DIR, and give shards=DIR$"):
        (tmp_path / "my.jsonl").write_text("{}")
        with_finetune([f"finetune={model}", f"shards={tmp_path / 'my.jsonl'}"])


def test_shard_mb_and_parts_do_what_they_do_for_a_source(samples, model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        own_data, "prepare_split", lambda job, e, c, parts, prune, drawn: asked.append((job.shard_bytes, parts, prune))
    )
    for options in ({"shard_mb": 0.5, "parts": 1}, {}):
        prepared(samples / "my.jsonl", model, tmp_path / "out", held_out=0.0, **options)
    assert asked == [(500_000, 1, False), (100_000_000, None, True)]


def test_a_model_without_a_codec_is_asked_for_one(samples, model, tmp_path):
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    TOKENIZER.save(tmp_path)
    with pytest.raises(UserError, match="has no audio codec: give codec_folder=DIR"):
        prepared(samples / "my.jsonl", tmp_path, tmp_path / "out")
    out = prepared(samples / "my.jsonl", tmp_path, tmp_path / "out", codec_folder=str(model / "codec"))
    assert size(out / "shards/own")


@pytest.mark.parametrize("lora", [False, True])
def test_one_command_fine_tunes_and_says_what_it_chose(lora, mine, model, tmp_path, capsys):
    words = [f"finetune={model}", f"shards={mine}", f"lora={str(lora).lower()}"]
    extra = ["logger=csv", "stage.steps=2", "data.workers=0", "callbacks.progress_bar=false", f"paths.runs={tmp_path}"]
    arguments = with_finetune([*words, *extra])
    for inner in ("shards", "shards/own"):  # as `prepare` names them
        assert with_finetune([words[0], f"shards={mine}/{inner}", *words[2:], *extra]) == arguments
    told = capsys.readouterr().out
    assert "), but stage.steps=2 as given\n" in told and "give others" not in told
    with_finetune([*words, "stage.learning_rate=0.003", "stage.epochs=1"])
    assert "), but stage.learning_rate=0.003, stage.epochs=1 as given\n" in capsys.readouterr().out
    with_finetune(words)
    assert "); give others to change them\n" in capsys.readouterr().out
    assert "10 passes are stage.steps=20 of stage.rows_per_step=" in told and ("adapters train alone" in told) == lora
    assert arguments.count("stage.steps=2") == 1 and not any(a.startswith(("finetune", "lora=")) for a in arguments)
    config = train_config(*arguments)
    assert config.stage.learning_rate == pytest.approx(5e-5 * 0.5 * (5 if lora else 1), rel=0.05)
    folder = train_stage(config)
    again = train_config(*with_finetune([f"finetune={folder}", f"shards={mine}", f"lora={str(lora).lower()}", *extra]))
    assert again.stage.learning_rate == pytest.approx(config.stage.learning_rate * 0.5, rel=0.05)  # not five times more
    capsys.readouterr()
    loaded = load_speech_model(folder)
    assert loaded.codec_dir is not None and list(loaded.pattern.runs) == [1, 10, 4, 10] and loaded.model.n_heads == 2
    assert (folder / "adapters.json").exists() == lora
    assert "val/loss" in (folder.parent / "metrics.csv").read_text()
    of_last_step = named_model(folder.parent / "checkpoints/step-2")
    assert of_last_step == folder.parent / "models/step-00000002"
    assert same_weights(of_last_step, folder)


def same_weights(one, other):
    one, other = (load_speech_model(folder).model.state_dict() for folder in (one, other))
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_any_checkpoint_is_a_model(mine, model, tmp_path, monkeypatch):
    parent = tmp_path / "parent"
    shutil.copytree(model, parent)
    words = [f"finetune={parent}", f"shards={mine}", "logger=csv", "stage.steps=3", "data.workers=0", "run_name=x"]
    more = ["callbacks.progress_bar=false", "callbacks.save_every=1", "callbacks.keep_last=0", f"paths.runs={tmp_path}"]
    stage = train_stage(train_config(*with_finetune([*words, *more]))).parent
    checkpoints = stage / "checkpoints"

    with monkeypatch.context() as patched:
        patched.setattr(hand_over, "starting_model", None)  # nobody builds the whole model
        made = named_model(f"x/{stage.name}/checkpoints/step-00000001.ckpt", tmp_path)
    assert not same_weights(made, stage / "model") and not same_weights(made, parent)
    assert stage_of(made) == f"{stage.name}-step-1" and bench_folder(None, made, "b", "runs") == tmp_path / "x/eval/b"
    assert find_run(made) == tmp_path / "x" and last_stage(tmp_path / "x") == stage.name
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_model, "hand_over", None)  # it is there already
        assert named_model(checkpoints / "step-1") == made and named_model(made) == made
    (made / "manifest.json").unlink()
    assert named_model(checkpoints / "step-1") == made and (made / "manifest.json").is_file()

    goes_on = train_config("stage=sft", f"init_from={made}", f"data.shards={mine}/shards", "run_name=y", *more)
    assert find_parent(goes_on) == made

    for name, says in (("step-9", "step-00000001.ckpt, step-00000002.ckpt"), ("../checkpoints", "name one of them")):
        with pytest.raises(UserError, match=says):
            named_model(checkpoints / name)
    moved = shutil.copytree(tmp_path / "x", tmp_path / "elsewhere/x")  # the run may move, with its parents in it
    assert same_weights(named_model(moved / stage.name / "checkpoints/step-1"), made)
    part = checkpoints / "step-00000002.ckpt/part-00000.safetensors"
    part.write_bytes(flipped(part.read_bytes()))
    with pytest.raises(UserError, match="step-00000002.ckpt cannot be used"):
        named_model(checkpoints / "step-2")
    identity = stage / "identity.json"
    identity.write_text(re.sub(r'("parent_weights": ")\w+', r"\1of-another", identity.read_text()))
    with pytest.raises(UserError, match="trained from other weights"):
        named_model(checkpoints / "step-3")


def flipped(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def test_rows_that_do_not_divide_give_the_same_losses(mine, model, tmp_path):
    curves = []
    for name, at_once in (("one", 1), ("three", 3), ("two", 2)):
        settings = [
            f"finetune={model}",
            f"shards={mine}",
            "stage.rows_per_step=3",
            f"trainer.rows_per_device={at_once}",
        ]
        more = ["logger=csv", "stage.steps=3", "data.workers=0", f"run_name={name}", "callbacks.log_every=1"]
        folder = train_stage(train_config(*with_finetune([*settings, *more, f"paths.runs={tmp_path}"])))
        rows = csv.DictReader((folder.parent / "metrics.csv").open())
        curves.append([(float(row["train/loss"]), float(row["train/loss_main"])) for row in rows])
    for other in curves[1:]:
        assert np.allclose(other, curves[0], rtol=1e-5)


def test_a_mixture_beside_the_data_is_not_the_datas(model, mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixture.yaml").write_text("")
    shutil.copytree(mine / "shards", "mydata")
    with pytest.raises(UserError, match="^mydata has no mixture.yaml"):
        with_finetune([f"finetune={model}", "shards=mydata"])


def test_half_a_command_is_one_sentence(model, mine, tmp_path):
    for arguments, says in (
        ([f"finetune={model}"], "takes finetune=MODEL and shards=DIR"),
        ([f"finetune={model}", f"shards={tmp_path}"], "holds no prepared data; make it with"),
        ([f"finetune={tmp_path}", f"shards={mine}"], "is not a model folder"),
        ([f"finetune={model}", f"shards={mine}", "lora=8"], "give lora=true"),
    ):
        with pytest.raises(UserError, match=says):
            with_finetune(arguments)
    assert with_finetune(["stage=sft"]) == ["stage=sft"]


def test_more_data_takes_fewer_passes_and_never_fewer_steps():
    usual = {"learning_rate": 6e-4, "sequence_length": 256, "rows_per_step": 8}
    choices = [choose(n, 100 * n, n / 1000, usual, False) for n in (1, 50, 500, 5_000, 50_000, 500_000)]
    assert [choice.epochs for choice in choices] == [10, 10, 10, 5, 3, 2]
    steps = [choice.steps for choice in choices]
    assert steps == sorted(steps) and steps[0] == 20 and steps[-1] == 4000
    assert [choice.learning_rate for choice in choices][-3:] == [3e-4, 6e-4, 6e-4]
    assert all(1 <= choice.rows_per_step <= 8 for choice in choices)
