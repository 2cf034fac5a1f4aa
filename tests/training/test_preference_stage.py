"""The stage on pairs of answers: a person's JSONL and a finished model in, a model out, with the proofs of every other stage."""

import csv
import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

from vita_audio_pl.answer_pairs import are_made, make_pairs
from vita_audio_pl.assets import asset_dir
from vita_audio_pl.codecs import write_wav
from vita_audio_pl.config.decoding import Sampling
from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.data.options import ExecutorOptions, PrepareConfig
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.records import Answer, Transcript
from vita_audio_pl.evaluation.settings import SuiteConfig
from vita_audio_pl.interleave import IntervalRatio
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.preference import Preference
from vita_audio_pl.notebook import open_stage, prepare_data, train_config, train_stage
from vita_audio_pl.own_data import ANSWERED_BY, prepare_own_data
from vita_audio_pl.pairs import PairsConfig
from vita_audio_pl.storage.checksums import read_sealed, write_sealed
from vita_audio_pl.storage.lease import hold
from vita_audio_pl.sweeps.chain import check_pairs_given
from vita_audio_pl.text import TextTokenizer
from vita_audio_pl.training.callbacks.reference import Reference
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.step.module import SpeechLMModule

TOKENIZER = TextTokenizer.train(["the big red cow sees the small blue cat"], 300)
N_CODES, N_PAIRS = 16, 14


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A published-looking folder with a codec: the layout of Boost, random weights, two heads."""
    wave = torch.randn(64_000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    return toy.published_folder(tmp_path_factory.mktemp("model"), TOKENIZER, [wave], N_CODES)


def line(number: int) -> str:
    codes = torch.randint(0, N_CODES, (2, 9 + number % 4), generator=torch.Generator().manual_seed(number)).tolist()
    sound = ["codes:" + ",".join(map(str, of_answer)) for of_answer in codes]
    said = f"the cow {number}"
    return json.dumps(
        {"messages": [{"role": "user", "content": f"Convert the text to speech.\n{said}"}], "chosen": "<|audio|>",
         "rejected": {"role": "assistant", "content": "<|audio|>"}, "audios": sound}
        if number % 4
        else {"messages": [{"role": "user", "content": f"where is {said}"}], "chosen": "in the tree", "rejected": "a tree"}
    )  # fmt: skip


def prepared(lines, model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    options = {"samples": str(folder / "pairs.jsonl"), "model": str(model), "out": str(folder / "out"), "shards": ""}
    config = PrepareConfig(**options, executor=ExecutorOptions(workers=1), held_out=0.2, max_skipped=0.5)
    return prepare_own_data(config, Console(quiet=True))


@pytest.fixture(scope="module")
def pairs(model, tmp_path_factory):
    return prepared([line(number) for number in range(N_PAIRS)], model, tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def settings(model, pairs, tmp_path):
    def settings(run_name="run", *more):
        return [
            "stage=dpo", f"init_from={model}", f"data.shards={pairs}/shards", f"run_name={run_name}", f"paths.runs={tmp_path}",
            "n_heads=2", "codec.codebook_size=16", "stage.sequence_length=160", "stage.rows_per_step=2", "stage.steps=4",
            "stage.learning_rate=1e-2", "data.workers=0", "logger=csv", "callbacks.log_every=1", "callbacks.progress_bar=false",
            "callbacks.validate_every=4", *more,
        ]  # fmt: skip

    return settings


def curve(folder):
    with (folder.parent / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_pair_is_two_documents_of_the_same_prompt(settings, pairs):
    source = PreparedSource(pairs / "shards/own")
    assert source.holds_pairs and len(source) + len(PreparedSource(pairs / "shards/own.dev")) == N_PAIRS
    _, data = open_stage(train_config(*settings()))
    batch = next(iter(data.train_dataloader()))
    labelled = batch.labels >= 0
    for row in range(len(batch.input_ids)):
        documents = int(batch.document_ids[row].max()) + 1
        assert documents == len(batch.names[row]) and documents % 2 == 0
        for first in range(0, documents, 2):
            chosen, rejected = (batch.document_ids[row] == number for number in (first, first + 1))
            asked = [batch.input_ids[row][here & ~labelled[row]].tolist() for here in (chosen, rejected)]
            answers = [batch.input_ids[row][here & labelled[row]].tolist() for here in (chosen, rejected)]
            assert asked[0] == asked[1] and answers[0] != answers[1]
            assert batch.position_ids[row][rejected].tolist() == list(range(int(rejected.sum())))
            assert batch.names[row][first] == batch.names[row][first + 1]
    assert batch.divisor == sum(len(names) for names in batch.names) / 2


def test_the_stage_trains_and_says_what_became_of_the_pairs(settings):
    folder = train_stage(
        train_config(
            *settings("run", "stage.steps=12", "stage.sft_weight=0", "callbacks.keep_best_by=val/reward_margin")
        )
    )
    manifest = StageManifest.of(folder)
    assert (manifest.stage, manifest.n_heads, manifest.frozen) == ("dpo", 2, 0) and manifest.trained > 0
    rows = curve(folder)
    first, last = rows[0], rows[-1]
    assert float(first["train/loss"]) == pytest.approx(0.6931, abs=1e-3)  # nothing has moved: log 2
    assert float(first["train/reward_margin"]) == pytest.approx(0, abs=1e-3)
    assert float(last["train/reward_margin"]) > 0.1 and float(last["train/reward_accuracy"]) > 0.9
    assert float(last["train/loss"]) < 0.6
    assert any(row.get("val/reward_accuracy") for row in rows)


def test_the_reference_is_what_the_parent_says_of_these_very_answers(settings):
    folder = train_stage(train_config(*settings("run", "stage.steps=1")))
    kept = read_sealed(folder.parent / "reference.json")["log_probabilities"]
    assert sum(map(len, kept.values())) == N_PAIRS
    module, data = open_stage(train_config(*settings("again")))
    data.reference = {source: np.array(pairs) for source, pairs in kept.items()}
    for batch in (next(iter(data.train_dataloader())), *data.val_dataloader()):
        with torch.no_grad():
            pairs = module.speech_lm(batch, module.objective).pairs
        torch.testing.assert_close(pairs[:, :2], batch.reference, rtol=1e-5, atol=1e-4)


def test_the_reference_is_computed_in_the_precision_of_training(settings, monkeypatch):
    losses, casts = Preference.losses, []

    def watched(self, *arguments):
        casts.append(torch.is_autocast_enabled("cpu"))
        return losses(self, *arguments)

    monkeypatch.setattr(Preference, "losses", watched)
    folder = train_stage(train_config(*settings("run", "stage.steps=1", "trainer.precision=bf16-mixed")))
    assert read_sealed(folder.parent / "reference.json")["precision"] == "bf16-mixed"
    assert casts and all(casts)
    assert float(curve(folder)[0]["train/reward_margin"]) == pytest.approx(0, abs=1e-3)


def test_a_file_that_fails_on_the_first_rank_fails_on_all(settings, tmp_path, monkeypatch):
    module, data = open_stage(train_config(*settings()))
    sent = []

    def both_ranks(file):
        for first in (True, False):
            strategy = SimpleNamespace(
                broadcast=lambda value, first=first: sent.append(value) or value if first else sent.pop(0)
            )
            trainer = SimpleNamespace(strategy=strategy, is_global_zero=first, datamodule=data)
            with pytest.raises(OSError, match="No space|directory"):
                Reference(file, {}).on_fit_start(trainer, module)
        assert not sent

    both_ranks(tmp_path)  # not a file

    def no_space(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Reference, "_computed", lambda *arguments: {})
    monkeypatch.setattr("vita_audio_pl.training.callbacks.reference.write_sealed", no_space)
    both_ranks(tmp_path / "reference.json")


def test_a_crashed_run_resumes_to_the_same_bits(settings, monkeypatch):
    whole = train_stage(train_config(*settings("whole")))
    step, calls = SpeechLMModule.training_step, []

    def crashes(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 4:
            raise RuntimeError("the machine is gone")
        return step(self, batch, batch_idx)

    words = settings("killed", "callbacks.save_every=2")
    with monkeypatch.context() as patched:
        patched.setattr(SpeechLMModule, "training_step", crashes)
        with pytest.raises(RuntimeError, match="machine is gone"):
            train_stage(train_config(*words))
    with monkeypatch.context() as patched:
        patched.setattr("vita_audio_pl.training.callbacks.reference.Reference._computed", None)  # it is there
        killed = train_stage(train_config(*words))
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    figures = ("train/loss", "train/reward_margin", "train/logp_chosen")
    mine, theirs = ([[row[name] for name in figures] for row in curve(folder)] for folder in (killed, whole))
    assert mine == theirs


def test_micro_batches_give_the_same_losses(settings):
    curves = []
    for at_once in (2, 1):
        folder = train_stage(train_config(*settings(f"rows-{at_once}", f"trainer.rows_per_device={at_once}")))
        curves.append([[float(row[name]) for name in ("train/loss", "train/reward_margin")] for row in curve(folder)])
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-4, atol=1e-5)


def test_what_is_frozen_stays_and_heads_learn(settings):
    freeze = r"stage.freeze=['^(model|lm_head|speech_input)\.']"
    folder = train_stage(train_config(*settings("heads", freeze)))
    manifest = StageManifest.of(folder)
    assert manifest.frozen > 0 and manifest.trained > 0
    assert float(curve(folder)[-1]["train/reward_margin"]) > 0


def test_beta_and_the_pairs_decide_which_run_it_is(settings, model, tmp_path):
    train_stage(train_config(*settings()))
    train_stage(train_config(*settings()))  # it is finished
    train_stage(
        train_config(*settings("run", "objective=audio_only", "rendering.text_weight=3"))
    )  # without effect here
    with pytest.raises(UserError, match=r"stage.beta is 0.1 there and 0.2 here"):
        train_stage(train_config(*settings("run", "stage.beta=0.2")))
    other = prepared([line(number + 1) for number in range(N_PAIRS)], model, tmp_path / "other")
    with pytest.raises(UserError, match=r"data is \w+ there"):
        train_stage(train_config(*settings("run", f"data.shards={other}/shards")))


def test_data_of_another_kind_is_refused(settings, model, pairs, tmp_path):
    with pytest.raises(UserError, match="holds pairs of answers, which stage 'sft' does not train"):
        train_stage(train_config(*settings("sft", "stage=sft", "stage.mixture=preference")))
    lines = [
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": str(n)}]})
        for n in range(4)
    ]
    single = prepared(lines, model, tmp_path / "single")
    with pytest.raises(UserError, match="trains on pairs of answers .* has single ones"):
        train_stage(train_config(*settings("x", f"data.shards={single}/shards")))
    register_schema("train", TrainConfig)
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):  # before anything is trained
        with pytest.raises(UserError, match=r"variant.stages=\[align,sft\].*then stage=dpo with data.shards="):
            check_pairs_given(["align", "sft", "dpo"], [f"data.shards={single}/shards"])
        check_pairs_given(["sft", "dpo"], [f"data.shards={pairs}/shards"])
        check_pairs_given(["sft", "dpo"], [])
    with pytest.raises(UserError, match="give stage.beta"):
        train_config(*settings("x", "stage.beta=0", "stage.sft_weight=1"))


def test_lines_that_are_no_pairs_are_named(model, tmp_path):
    good = [line(number) for number in range(8)]
    same = {"messages": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "b"}
    none = {"messages": [{"role": "user", "content": "a"}], "chosen": "b"}
    wrong = {
        "messages": [{"role": "user", "content": "a"}],
        "chosen": "<|audio|>",
        "rejected": "c",
        "audios": ["codes:1,x"],
    }
    heard = {
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "chosen": "b",
        "rejected": "c",
        "audios": ["codes:1,99"],
    }
    out = prepared([*good, *map(json.dumps, (same, none, wrong, heard))], model, tmp_path / "bad")
    names = ("own", "own.dev")
    assert sum(len(PreparedSource(out / "shards" / name)) for name in names) == len(good)
    told = "".join(
        (out / "shards" / name / "skipped.jsonl").read_text()
        for name in names
        if (out / "shards" / name / "skipped.jsonl").exists()
    )
    for says in (
        "are the same answer",
        "'rejected' must be one answer",
        "after 'codes:' stand whole numbers",
        "makes no codes",
    ):
        assert says in told, (says, told)


def test_without_shards_the_parent_makes_its_pairs_once(model, tmp_path, monkeypatch):
    commands = []

    def answers(command):
        commands.append(command)
        out = next(word.removeprefix("out=") for word in command if word.startswith("out="))
        Path(out).mkdir(parents=True)
        write_sealed(Path(out) / ANSWERED_BY, {"format": 1, "weights": StageManifest.of(model).weights})
        return 0

    monkeypatch.setattr("vita_audio_pl.train.run_command", answers)
    words = ["stage=dpo", f"init_from={model}", "run_name=x", f"paths.runs={tmp_path}", "per_stage.dpo.beta=0.3"]
    for _ in range(2):
        config = train_config(*words)
        prepare_data(config)
        assert config.data.shards == str(tmp_path / "x/pairs/shards") and config.stage.beta == 0.3
    assert len(commands) == 1 and {f"model={model}", "bench=spoken_world", "limit=450"} <= set(commands[0])
    for rank in ({"RANK": "1"}, {"LOCAL_RANK": "0"}):  # the first too where the others are there already
        with (
            monkeypatch.context() as patched,
            pytest.raises(
                UserError, match="several processes cannot make them together: first run python -m vita_audio_pl.pairs"
            ),
        ):
            for name, value in rank.items():
                patched.setenv(name, value)
            prepare_data(train_config(*words, "run_name=y", "trainer=cpu_ddp", "trainer.devices=2"))
    prepare_data(train_config(*words, "run_name=y", "trainer=cpu_ddp", "trainer.devices=2"))
    assert len(commands) == 2


@pytest.mark.parametrize("only", [False, True])
def test_adapters_learn_what_is_preferred(only, settings, model):
    words = ("stage.steps=40", "stage.sft_weight=0", "model.lora.rank=4", f"model.lora.only={str(only).lower()}")
    folder = train_stage(train_config(*settings("run", *words)))
    assert (folder / "adapters.json").is_file() == only
    last = curve(folder)[-1]
    assert float(last["train/reward_margin"]) > 0.1 and float(last["train/reward_accuracy"]) > 0.9
    before, after = (dict(load_model(place).named_parameters()) for place in (model, folder))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj.weight" in name for name in moved) and not any("layernorm" in name for name in moved if only)
    assert ("model.embed_tokens.weight" in moved) == (not only)


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    """The same in the layout of Plus-Boost, and pairs of transcripts of what it heard, among pairs of spoken answers."""
    folder = tmp_path_factory.mktemp("hearing")
    wave = torch.randn(64_000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    model = toy.published_folder(folder / "model", TOKENIZER, [wave], N_CODES, hears=True)
    lines = []
    for number in range(N_PAIRS):
        write_wav(folder / f"{number}.wav", wave[1000 * number : 1000 * number + 4000], 16_000)
        heard = {
            "messages": [{"role": "user", "content": "Convert the speech to text.\n<|audio|>"}],
            "chosen": "the big red cow",
            "rejected": f"the small blue cat {number}",
            "audios": [str(folder / f"{number}.wav")],
        }
        lines.append(json.dumps(heard) if number % 2 else line(number))
    return model, prepared(lines, model, folder / "pairs")


def test_a_model_that_hears_through_an_encoder_learns_what_is_preferred(hearing, settings):
    model, pairs = hearing
    given = ("variant=vita_audio_plus_boost", f"init_from={model}", f"data.shards={pairs}/shards", "stage.steps=12")
    words = [word for word in settings("heard") if not word.startswith(("init_from=", "data.shards=", "stage.steps="))]
    folder = train_stage(train_config(*words, *given))
    rows = curve(folder)
    assert float(rows[0]["train/reward_margin"]) == pytest.approx(0, abs=1e-3)  # the reference has heard the same
    assert float(rows[-1]["train/reward_margin"]) > 0.1 and float(rows[-1]["train/reward_accuracy"]) > 0.9
    before, after = (dict(load_model(place).named_parameters()) for place in (model, folder))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("speech_input.audio_projection.") for name in moved)
    assert not any(name.startswith("speech_input.encoder.") for name in moved)  # frozen after align, as published


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("trainer", ["cpu_ddp", "fsdp2", "deepspeed_zero2"])
def test_two_ranks_give_the_same_losses(trainer, settings, tmp_path):
    one = train_stage(train_config(*settings("one")))
    words = [
        *settings("two"),
        f"trainer={trainer}",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
    ]
    subprocess.run([sys.executable, "-m", "vita_audio_pl.train", *words], check=True, timeout=600)
    names = ("train/loss", "train/reward_margin", "train/reward_accuracy", "grad_norm")
    mine, theirs = (
        torch.tensor(
            [[float(row[name]) for name in names] for row in curve(tmp_path / run / "dpo/model") if row["train/loss"]]
        )
        for run in ("one", "two")
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    first, second = (read_sealed(tmp_path / run / "dpo/reference.json")["log_probabilities"] for run in ("one", "two"))
    for source in first:
        torch.testing.assert_close(torch.tensor(first[source]), torch.tensor(second[source]), rtol=1e-5, atol=1e-4)
    assert one.is_dir()


class FakeToolbox:
    """A model and a judge whose answers follow from text and seed: an odd seed is understood less, seed 3 is silent."""

    asked: list[tuple[int, str]] = []
    fails_at = -1

    def __init__(self, *arguments, **options):
        pass

    def judge(self, name):
        return None

    def codec(self, folder):
        return None

    def answer(self, model, decoding, batch_size, items):
        answers = []
        for item in items:
            if len(self.asked) == self.fails_at:
                raise RuntimeError("the machine is gone")
            seed, text = decoding.sampling.seed, item.references[0]
            self.asked.append((seed, item.id))
            codes = () if seed == 3 else (seed, int(text[-1]), *range(7 + seed % 2))
            n_text = len(TOKENIZER.encode(text))
            length = IntervalRatio.of("boost").length(n_text, len(codes)) + (
                1 if seed != 2 else 2
            )  # 2 writes otherwise
            answers.append(Answer(item.id, text, codes, length))
        return answers, {}

    def transcribe(self, model, judge, answers, voices):
        assert all(answer.codes for answer in answers)
        return [Transcript(a.id, a.text if a.codes[0] % 2 == 0 else "the cow", 1.0) for a in answers]


@pytest.fixture
def pairs_config(model, tmp_path, monkeypatch):
    monkeypatch.setattr("vita_audio_pl.evaluation.runs.evaluate.ModelToolbox", FakeToolbox)
    monkeypatch.setattr(FakeToolbox, "asked", [])
    asked = [{"messages": [{"role": "user", "content": f"Convert the text to speech.\nthe big red cow {number}"},
                           {"role": "assistant", "content": "<|audio|>"}], "audios": ["x.wav"]} for number in range(6)]  # fmt: skip
    (tmp_path / "tts.jsonl").write_text("\n".join(map(json.dumps, asked)))
    register_schema("pairs", PairsConfig)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
        bench = [
            f"bench.root={tmp_path}",
            "bench.tasks.tts.train=tts.jsonl",
            "bench.grammar=null",
            "workers=1",
            "device=cpu",
        ]
        config = compose("pairs", [f"out={tmp_path / 'made'}", f"paths.runs={tmp_path}", *bench, "batch_size=2"])
    config.model = str(model)
    return to_dataclass(config)


def test_best_and_worst_of_a_models_answers_are_paired_and_sampling_resumes(
    pairs_config, model, monkeypatch, tmp_path, capsys
):
    FakeToolbox.fails_at = 9
    with pytest.raises(RuntimeError):
        make_pairs(pairs_config, model, Console(quiet=True))
    kept = len(FakeToolbox.asked) // 2 * 2
    FakeToolbox.fails_at, FakeToolbox.asked[:] = -1, []
    out = make_pairs(pairs_config, model, Console(quiet=True))
    assert len(FakeToolbox.asked) == 6 * 4 - kept  # whole batches stay
    told = capsys.readouterr().out
    assert "6 pairs of 6 prompts with 4 answers each" in told
    assert "6 left out: another form; 6 left out: silent" in told
    lines = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["error_rates"] == [0.0, 0.6] and line["chosen"] == line["rejected"] == "<|audio|>"
        assert [sound.count(",") + 1 for sound in line["audios"]] == [9, 10]
    assert sum(len(PreparedSource(out / "shards" / name)) for name in ("own", "own.dev")) == 6
    assert are_made(out, StageManifest.of(model).weights) and not are_made(out, "others")
    source = PreparedSource(out / "shards/own")
    chosen, rejected = (turn for turn in source.read(0).turns if turn.role == "assistant")
    assert [turn.segments[-1].codes[0] for turn in (chosen, rejected)] == [0, 1]

    with hold(out, "pairs", "a test"), pytest.raises(UserError, match="give another out=DIR"):
        make_pairs(pairs_config, model, Console(quiet=True))
    pairs_config.margin = 0.7
    with pytest.raises(UserError, match="no prompt gave two answers that are margin=0.7 apart"):
        make_pairs(pairs_config, model, Console(quiet=True))


def test_settings_that_make_no_pairs_are_refused(pairs_config):
    for name, value, says in (
        ("task", "asr", "no speech to judge"),
        ("mode", "all", "choose one"),
        ("suite", SuiteConfig(), "leave suite"),
    ):
        changed = replace(pairs_config, **{name: value})
        with pytest.raises(UserError, match=says):
            changed.check()
    with pytest.raises(UserError, match="choose one above 0"):
        replace(pairs_config, sampling=Sampling()).check()
