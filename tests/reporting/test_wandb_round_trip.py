"""What training tells wandb is what a report elsewhere needs; no outage of wandb undoes what is finished."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from hydra.core.hydra_config import HydraConfig
from made_up_experiment import write_arm
from made_up_run import write_json, write_tone

from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.dashboard import ARMS
from vita_audio_pl.reporting.experiment.files import ExperimentFiles
from vita_audio_pl.reporting.experiment.wandb_arms import fetch_arms
from vita_audio_pl.reporting.run.listening import listening_examples
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.sweeps.wandb_arm import log_arm
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.tracking.lineage import log_lineage


@pytest.fixture(autouse=True)
def outside_a_command(monkeypatch):
    """Hydra remembers the command that an earlier test of this process imitated."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)


class Run:
    """A stand-in for an open run: notes what it is told, and has the artifacts that it is given."""

    def __init__(self, known=(), offline=False):
        self.name, self.offline, self.known = "objective/distil-seed1", offline, known
        self.summary, self.used, self.logged, self.settings = {}, [], [], {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def use_artifact(self, artifact):
        if self.offline:
            raise TypeError("Cannot use artifact when in offline mode.")
        if isinstance(artifact, str) and artifact not in self.known:
            raise wandb.errors.CommError(f"artifact {artifact} not found")
        self.used.append(artifact if isinstance(artifact, str) else artifact.name)

    def log_artifact(self, artifact, aliases=None):
        self.logged.append(artifact)
        return SimpleNamespace(wait=lambda timeout: None)


def write_manifest(model, stage, weights, parent=None):
    StageManifest(
        stage, "vita_audio_boost", "r", None, parent and "align", parent, weights, "v", "t", "mel_vq", "c", [1, 10, 4, 10],
        [1, 10, 4, 10], 10, 150, 0, 1,
    ).write(model)  # fmt: skip


def logged_arm(home, monkeypatch, known=()):
    """An arm, and the run that it was logged as."""
    write_arm(home / "runs" / "objective", "distil", 1, 0)
    arm = home / "runs" / "objective" / "distil-seed1"
    for stage in ("align", "mtp10"):
        write_manifest(arm / stage / "model", stage, f"w-{stage}")
    for path in arm.glob("eval/*/*/*/*/utterances.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows.append({name: rows[0][name] for name in rows[0] if name != "audio"} | {"id": "unheard"})
        for number, row in enumerate(rows):
            row["spoken_reference"] = f"recordings/answer{number}.wav"
            row |= {"source": f"recordings/question{number}.wav"} if row["id"].startswith("sqa") else {}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for bench in (arm / "eval").iterdir():
        for number in range(3):
            write_tone(bench / "recordings" / f"answer{number}.wav", 500 + number)
            write_tone(bench / "recordings" / f"question{number}.wav", 300 + number)
    run = Run(known)

    def init(**settings):
        run.settings = settings
        return run

    monkeypatch.setattr(wandb, "init", init)
    config = SimpleNamespace(
        run_name="objective/distil-seed1", seed=1, experiment=SimpleNamespace(name="objective", question="Which?"),
        variant=SimpleNamespace(name="v", stages=["align", "mtp10"]), scale=SimpleNamespace(name="small"),
        logger=SimpleNamespace(wandb_project="p", wandb_entity=None),
    )  # fmt: skip
    log_arm(config, arm, "online")
    return run


def api_with(*artifacts):
    runs = [SimpleNamespace(name="objective/distil-seed1", logged_artifacts=lambda: artifacts)]
    asked = []
    return SimpleNamespace(runs=lambda project, filters: asked.append((project, filters)) or runs, asked=asked)


def served(artifact, version="v0", cut_off_after=None):
    """A logged artifact, whose download may be cut off."""

    def download(root):
        for number, (name, entry) in enumerate(sorted(artifact.manifest.entries.items())):
            if number == cut_off_after:
                raise ConnectionError("the line is dead")
            (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(entry.local_path, Path(root) / name)

    return SimpleNamespace(type="arm", version=version, download=download)


def test_a_fetched_arm_plays_its_questions_and_answers(tmp_path, monkeypatch):
    (artifact,) = logged_arm(tmp_path / "home", monkeypatch).logged
    shutil.rmtree(tmp_path / "home")
    outdated = SimpleNamespace(type="arm", version="v1", download=lambda root: pytest.fail("not the newest"))
    api = api_with(outdated, served(artifact, "v10"))
    (folder,) = fetch_arms("lab/speech", "objective", tmp_path / "elsewhere", api)
    assert api.asked == [("lab/speech", {"group": "objective", "jobType": "arm"})]
    heard = listening_examples(RunFiles.read(folder), "mtp10", "test")
    assert len(heard) == 6 and all(voice.sound.uri for utterance in heard for voice in utterance.voices)
    names = [[voice.name for voice in utterance.voices][:2] for utterance in heard]
    assert names == [["question", "expected"]] * 3 + [["expected", "vanilla"]] * 3
    assert fetch_arms("lab/speech", "objective", tmp_path / "elsewhere", api) == []


def test_a_download_that_was_cut_off_is_no_arm_and_is_fetched_again(tmp_path, monkeypatch):
    (artifact,) = logged_arm(tmp_path / "home", monkeypatch).logged
    assert sorted(artifact.manifest.entries).index("arm.json") < 5
    with pytest.raises(UserError, match="could not be fetched.*the line is dead"):
        fetch_arms("lab/speech", "objective", tmp_path / "runs", api_with(served(artifact, cut_off_after=5)))
    with pytest.raises(UserError, match="no ablation"):
        ExperimentFiles.read(tmp_path / "runs" / "objective")
    (folder,) = fetch_arms("lab/speech", "objective", tmp_path / "runs", api_with(served(artifact)))
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(artifact.manifest.entries)
    (folder / "arm.json").unlink()
    with pytest.raises(UserError, match="is in the way"):
        fetch_arms("lab/speech", "objective", tmp_path / "runs", api_with(served(artifact)))


def test_an_arms_run_names_reused_stages_what_they_cost_and_what_it_reached(tmp_path, monkeypatch, capsys):
    run = logged_arm(tmp_path, monkeypatch, known=("model-w-align:latest",))
    align = run.settings["config"]["stages"]["align"]
    assert align["weights"] == "w-align" and align["made_by"] == "objective/every_head-seed1" and align["reused"]
    assert align["cpu_seconds"] == 300.0 and align["folder"].endswith("shared_stages/align-1")
    arm = json.loads((tmp_path / "runs/objective/distil-seed1/arm.json").read_text())
    added = arm["stages"][1]["cpu_seconds"] + arm["evaluation"]["cpu_seconds"]  # the other stage was another arm's
    assert run.summary["arm/cpu_seconds"] == added > 0
    verified, drafted = (run.summary[f"arm/tts/speech_wer/{mode}"] for mode in ("own+verify", "own"))
    assert verified == pytest.approx(0.06) and drafted > verified
    assert {name for names in ARMS.values() for name in names} <= set(run.summary)
    assert run.used == ["model-w-align:latest"] and "wandb has no model-w-mtp10" in capsys.readouterr().err


@pytest.fixture
def model(tmp_path):
    write_json(tmp_path / "asr" / "manifest.json", {"samples": 3})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    write_manifest(tmp_path / "model", "mtp10", "abc", parent="def")
    return tmp_path / "model", {"asr": tmp_path / "asr" / "manifest.json"}


@pytest.mark.parametrize(("known", "offline"), [((), False), (("model-def:latest",), False), ((), True)])
def test_a_parent_that_wandb_does_not_have_is_a_hash_and_a_sentence(known, offline, model, capsys):
    run = Run(known, offline)
    log_lineage(run, *model)
    metadata = next(artifact for artifact in run.logged if artifact.name == "model-abc").metadata
    assert metadata["parent_weights"] == "def" and metadata["parent_in_wandb"] is bool(known)
    told = capsys.readouterr().err
    assert ("wandb has no model-def" in told) == (not known and not offline)
    data = [*run.used, *(artifact.name for artifact in run.logged)]
    assert metadata["data"] in data and ("model-def:latest" in run.used) == bool(known)


def test_a_finished_stage_stays_finished_when_the_network_goes(model, monkeypatch, capsys):
    def gone(*arguments, **settings):
        raise ConnectionError("no route")

    run = Run()
    monkeypatch.setattr(run, "log_artifact", gone)
    log_lineage(run, *model)
    assert "the stage is finished nevertheless" in capsys.readouterr().err
