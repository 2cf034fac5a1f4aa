"""A result has one identity: what decides it names its folder, nothing else does, and no evaluation touches another's files."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runner import SpellingToolbox, evaluation

from vita_audio_pl.config.decoding import SLACK, Sampling
from vita_audio_pl.evaluation.benches.bench import BenchConfig
from vita_audio_pl.evaluation.runs.plan import plan_evaluations
from vita_audio_pl.evaluation.runs.ranks import Share
from vita_audio_pl.evaluation.runs.results import write_results
from vita_audio_pl.evaluation.runs.runner import run_evaluations, worker_pool
from vita_audio_pl.evaluation.scores.normalisers import plain
from vita_audio_pl.evaluation.scores.scoring import Scoring
from vita_audio_pl.evaluation.settings import EvaluateConfig
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.kernels import FORMAT

DECIDING = {
    "model": ["m", "other-weights", "other-tokenizer", "other-codec", "other-manifest"],
    "bench": ["b", "other-reference", "other-question", "other-recording"],
    "mode": ["vanilla", "boost"],
    "verify": ["none", "greedy", "groups"],
    "constrain": [True, False],
    "sampling": [Sampling(), Sampling(temperature=0.7), Sampling(temperature=0.7, seed=1)],
    "max_new_tokens": [10, 20],
    "quantize": [None, "int8", "int4"],
    "limit": [None, 1],
    "codec_folder": [None, "m/codec", "other-codec/codec"],
    "encoder_folder": [None, "m/codec", "m/tokenizer"],
    "judge": ["whisper", "paraformer"],
    "judge_model": ["m", "other-weights"],
    "speaker_model": [None, "m", "other-weights"],
    "mos_model": [None, "b/tts.jsonl"],
    "normaliser": ["plain", "mixed"],
    "published_normaliser": [None, "mixed"],
    "published_average": ["pooled", "utterances"],
    "spelling_file": [None, "m/config.json"],
    "unit": ["word", "character"],
    "answers": ["exact", "contains"],
    "missing_audio": ["refuse", "count"],
}
"""Settings that decide a result, each with values (below: files) that make another one of it."""
OTHER = {
    "batch_size": [1, 64],
    "workers": [None, 3],
    "device": ["auto", "cpu"],
    "graphs": [None, False],
    "kernels": ["auto", "rows"],  # by these names; a file decides where the length of drafts does, see below
    "players": [0, 6],
    "controls": [0, 100],
    "transcripts": [None, "transcripts.jsonl"],
    "profile": ["strict", "both"],
    "step": ["all", "generate", "score"],
    "wandb": ["off", "offline"],
    "title": ["", "A bench"],
    "incomparable": [[], ["it is ours"]],
    "trust_file": [False, True],
    "copied": [False, True],
}
"""Settings that do not; `copied` takes model, bench and judge from copies with other times."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Model folders and benches that differ in one file each, with copies of all."""
    folder = tmp_path_factory.mktemp("world") / "a"
    manifest = {"stage": "sft", "weights": "w"}
    files = {
        "config.json": '{"num_nextn_predict_layers": 1}',
        "model.safetensors": "weights",
        "tokenizer/tokenizer.json": "{}",
        "codec/codec.json": "c",
    }
    for name, head in (("fast-heads.json", 0.1), ("slow-heads.json", 0.9)):
        passes = {"model": asdict(PassCosts(1.0, 0.0, head, 0.0))}
        record = {"format": FORMAT, "plans": {}, "does": {}, "passes": passes}
        files[name] = json.dumps(record)
    for name, changes in {
        "m": {},
        "other-weights": {"model.safetensors": "weighty"},
        "other-tokenizer": {"tokenizer/tokenizer.json": "[]"},
        "other-codec": {"codec/codec.json": "d"},
        "other-manifest": {"manifest.json": json.dumps(manifest | {"weights": "v"})},
    }.items():
        for file, text in ({"manifest.json": json.dumps(manifest)} | files | changes).items():
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_text(text)
    rows = [
        {"id": id, "messages": [{"role": "system", "content": "Your Voice: <|audio|>"},
                                {"role": "user", "content": f"Convert the text to speech.\nthe {id} cow"},
                                {"role": "assistant", "content": "<|audio|>"}],
         "audios": ["voice.wav", "answer.wav"], "answers": [f"the {id} cow"]} for id in ("red", "big")
    ]  # fmt: skip
    asked = json.loads(json.dumps(rows))
    asked[0]["messages"][1]["content"] = "Convert the text to speech.\nthe read cow"
    other = [rows[0] | {"answers": ["the read cow"]}, rows[1]]
    for name, lines, voice in (
        ("b", rows, "voice"), ("other-reference", other, "voice"), ("other-question", asked, "voice"),
        ("other-recording", rows, "vocal"),
    ):  # fmt: skip
        (folder / name).mkdir()
        (folder / name / "tts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / name / "voice.wav").write_text(voice)
    shutil.copytree(folder, folder.with_name("b"))
    for path in folder.with_name("b").rglob("*"):
        os.utime(path, (1, 1))
    return folder


def planned(world: Path, deciding: dict, other: dict):
    place = world.with_name("b") if other["copied"] else world
    bench = BenchConfig(
        "bench", other["title"], root=str(place / deciding["bench"]), tasks={"tts": {"test": "tts.jsonl"}},
        unit=deciding["unit"], normaliser=deciding["normaliser"], answers=deciding["answers"], judge=deciding["judge"],
        published_normaliser=deciding["published_normaliser"], published_average=deciding["published_average"],
        spelling_file=deciding["spelling_file"] and str(place / deciding["spelling_file"]),
        max_new_tokens={"tts": deciding["max_new_tokens"]}, incomparable=other["incomparable"],
    )  # fmt: skip
    names = ("mode", "verify", "constrain", "sampling", "limit", "missing_audio", "quantize")
    files = {
        name: deciding[name] and str(place / deciding[name])
        for name in ("judge_model", "speaker_model", "mos_model", "codec_folder", "encoder_folder")
    }
    more = {name: value for name, value in other.items() if name not in ("title", "incomparable", "copied")}
    config = EvaluateConfig(
        bench=bench, model=str(place / deciding["model"]), task="tts", output="out", **files, **more
    )
    (made,) = plan_evaluations(replace(config, **{name: deciding[name] for name in names}), "cpu")
    return made


def test_a_folder_in_few_bits_is_named_as_one_that_is_loaded_so(world):
    base, other = ({setting: values[0] for setting, values in of.items()} for of in (DECIDING, OTHER))
    (folder := world / "in-int4").mkdir()
    (folder / "config.json").write_text('{"quantize": "int4"}')
    (folder / "model.safetensors").write_text("weights")
    found, loaded = (
        planned(world, base | {"model": "in-int4"}, other),
        planned(world, base | {"quantize": "int4"}, other),
    )
    assert found.decoding == loaded.decoding and found.folder.name.startswith("tts.vanilla+int4.")
    (folder / "config.json").write_text('{"quantize": "../int4"}')
    assert planned(world, base | {"model": "in-int4"}, other).decoding.label == "vanilla"


@pytest.mark.parametrize(("verify", "decides"), [("greedy", False), ("groups", True)])
def test_slack_decides_where_verification_is_loose(world, verify, decides):
    base = {setting: values[0] for setting, values in DECIDING.items()} | {"verify": verify}
    other = {setting: values[0] for setting, values in OTHER.items()}
    plain, said, looser = (planned(world, base, other | {"slack": slack}) for slack in (None, SLACK, 0.9))
    assert plain.identity.key == said.identity.key
    assert (plain.identity.key != looser.identity.key) == decides


@pytest.mark.parametrize(
    ("verify", "temperature", "decides"),
    [
        ("greedy", 0.0, True),  # its tokens do not, but its passes and seconds do
        ("sample", 0.0, True),
        ("sample", 0.7, True),
        ("groups", 0.0, True),
        ("none", 0.7, False),
    ],
)
def test_recorded_costs_decide_where_heads_draft_by_them(world, verify, temperature, decides):
    base = {setting: values[0] for setting, values in DECIDING.items()}
    base |= {"verify": verify, "sampling": Sampling(temperature=temperature)}
    other = {setting: values[0] for setting, values in OTHER.items()}
    copy = world.with_name("b")
    files = [str(folder / "m" / name) for folder in (world, copy) for name in ("fast-heads.json", "slow-heads.json")]
    named, one, two, *copies = (planned(world, base, other | {"kernels": kernels}) for kernels in ("auto", *files))
    assert [made.identity.key for made in copies] == [one.identity.key, two.identity.key]
    assert len({made.identity.key for made in (named, one, two)}) == (3 if decides else 1)


@pytest.mark.parametrize("name", DECIDING)
def test_each_value_of_a_setting_that_decides_makes_a_result_of_its_own(world, name):
    base = {setting: values[0] for setting, values in DECIDING.items()}
    other = {setting: values[0] for setting, values in OTHER.items()}
    made = [planned(world, base | {name: value}, other) for value in DECIDING[name]]
    assert len({job.identity.key for job in made}) == len({job.folder for job in made}) == len(made)


@settings(max_examples=60)
@given(
    base=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in DECIDING.items()}),
    changed=st.sampled_from(sorted(DECIDING)),
    others=st.tuples(*[st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OTHER.items()})] * 2),
    data=st.data(),
)
def test_two_evaluations_are_one_exactly_where_all_that_decides_agrees(world, base, changed, others, data):
    second = base | {changed: data.draw(st.sampled_from(DECIDING[changed]))}
    one, two = (planned(world, deciding, other) for deciding, other in zip((base, second), others, strict=True))
    assert (one.identity.key == two.identity.key) == (base == second), changed
    assert (one.folder == two.folder) == (base == second), changed
    assert one.identity.key[:10] in one.folder.name


def test_every_setting_of_an_evaluation_is_known_to_decide_or_not_to(world):
    """A new setting must be put into one of the two lists above."""
    known = {
        "slack",
        "paths",
        "bench",
        "suite",
        "run_name",
        "task",
        "split",
        "compare",
        "output",
        "wandb_project",
        "plugins",
    }
    bench = {"name", "homepage", "format", "root", "tasks", "grammar", "language", "published"}
    fields = set(EvaluateConfig.__dataclass_fields__) | set(BenchConfig.__dataclass_fields__)
    assert fields - set(DECIDING) - set(OTHER) - known - bench == set()


def test_another_language_is_another_judge_where_the_judge_is_told(world):
    keys: dict[str, set[str]] = {}
    for judge in ("whisper", "paraformer"):
        for language in (None, "en", "zh"):
            bench = BenchConfig("b", root=str(world / "b"), tasks={"tts": {"test": "tts.jsonl"}}, language=language)
            config = EvaluateConfig(
                bench=bench, model=str(world / "m"), task="tts", judge=judge, judge_model=str(world / "m")
            )
            keys.setdefault(judge, set()).add(plan_evaluations(config)[0].identity.key)
    assert [len(found) for found in keys.values()] == [3, 1]


def test_a_changed_grammar_is_another_judge(world, tmp_path):
    keys = []
    for text in ("#JSGF a", "#JSGF b"):
        (tmp_path / "g.jsgf").write_text(text)
        os.utime(tmp_path / "g.jsgf", ns=(1, len(keys)))
        bench = BenchConfig("b", root=str(world / "b"), tasks={"tts": {"test": "tts.jsonl"}}, judge="pocketsphinx",
                            grammar=str(tmp_path / "g.jsgf"))  # fmt: skip
        config = EvaluateConfig(bench=bench, model=str(world / "m"), task="tts", missing_audio="count")
        keys.append(plan_evaluations(config)[0].identity.key)
    assert len(set(keys)) == 2


def test_what_a_gpu_generated_is_scored_on_a_machine_without_one(world, tmp_path):
    bench = BenchConfig("b", root=str(world / "b"), tasks={"tts": {"test": "tts.jsonl"}}, judge="whisper")
    config = EvaluateConfig(bench=bench, model=str(world / "m"), task="tts", output=str(tmp_path), step="generate")
    (generated,) = plan_evaluations(config, "cuda")
    with worker_pool(SpellingToolbox(tmp_path / "log"), 1) as run:
        run_evaluations([replace(generated, items=())], run)
    (scored,) = plan_evaluations(replace(config, step="score"), "cpu")
    (fresh,) = plan_evaluations(config, "cpu")
    assert scored.identity.answers == generated.identity.answers != fresh.identity.answers
    assert scored.identity.listening["precision"] == "float32"


CALLS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["m", "n"]),
        "listening": st.sampled_from(["spelling", "another"]),
        "limit": st.sampled_from([3, 7, None]),
        "batch_size": st.sampled_from([2, 5]),
        "share": st.sampled_from([Share(), Share(0, 2), Share(1, 2)]),
        "steps": st.sampled_from([("generate",), ("generate", "transcribe")]),
        "killed_after": st.sampled_from([None, None, 1, 3]),
    }
)


class Mortal(SpellingToolbox):
    """Is killed after some calls."""

    def __init__(self, log, calls):
        super().__init__(log)
        self.left = calls

    def _note(self, what, ids):
        super()._note(what, ids)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


@settings(max_examples=20)
@given(calls=st.lists(CALLS, min_size=2, max_size=6))
def test_no_sequence_of_evaluations_removes_or_changes_what_is_there(tmp_path_factory, calls):
    folder = tmp_path_factory.mktemp("calls")
    older = folder / "eval" / "tts.boost" / "answers.0.jsonl"  # of a version without keys
    older.parent.mkdir(parents=True)
    older.write_text('{"id": "0"}\n')
    before: dict[Path, bytes] = {}
    for call in calls:
        call = dict(call)
        share, steps, killed_after = (call.pop(name) for name in ("share", "steps", "killed_after"))
        job = evaluation(folder, **call)
        try:
            with worker_pool(Mortal(folder / "log", killed_after), 1) as run:
                (record,) = run_evaluations([job], run, share, steps=steps)
            if record.complete():
                write_results(record, Scoring(plain), {})
        except KeyboardInterrupt:
            with (job.folder / f"answers.{share.rank}.jsonl").open("a") as file:
                file.write('{"id": "5", "te')  # a write that was cut short
        now = {path: path.read_bytes() for path in (folder / "eval").rglob("*") if path.is_file()}
        for path, content in before.items():
            assert now[path].startswith(content) if path.suffix == ".jsonl" else now[path] == content
        before = now
    with worker_pool(SpellingToolbox(folder / "log"), 1) as run:
        (record,) = run_evaluations([evaluation(folder)], run)
    assert record.complete()
    assert {record.answer_of(item.id).text for item in record.evaluation.items} == {
        item.references[0] for item in record.evaluation.items
    }
