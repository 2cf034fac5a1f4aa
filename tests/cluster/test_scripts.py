"""The scripts for clusters: they parse, what they start composes, and a chain waits for its stages (stand-in SLURM)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from tests.patience import PATIENCE
from vita_audio_pl.assets import asset_dir
from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.training.checks import apply_stage_settings, check_train_config
from vita_audio_pl.training.settings import TrainConfig

CLUSTER = asset_dir("experiments") / "cluster"
CHAIN = ["align", "mtp1", "mtp10", "sft"]


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """Environment with commands that write their arguments, one call a line, into files of their names."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sbatch", "srun", "torchrun"):
        script = tools / name
        script.write_text(
            f'#!/bin/bash\necho "$*" >> {tmp_path}/{name}.calls\necho $((100 + $(wc -l < {tmp_path}/{name}.calls)))\n'
        )
        script.chmod(0o755)
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "SLURM_JOB_NUM_NODES": "4", "SLURM_NTASKS_PER_NODE": "8"}


def run(script: str, *arguments: str, **environment: str) -> str:
    command = ["bash", str(CLUSTER / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def composed(call: str) -> TrainConfig:
    """The configuration of a `... -m vita_audio_pl.train SETTING ...` command."""
    register_schema("train", TrainConfig)
    overrides = call.partition("vita_audio_pl.train ")[2].split()
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
        config = to_dataclass(compose("train", overrides=overrides), apply_stage_settings)
    check_train_config(config)
    return config


@pytest.mark.parametrize("script", ["stage.sbatch", "chain.sh", "torchrun.sh"])
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True)


@pytest.mark.parametrize("stage", CHAIN)
def test_a_job_of_a_stage_starts_training_on_all_its_nodes(stage, stand_ins, tmp_path):
    run("stage.sbatch", f"stage={stage}", "run_name=big", **stand_ins)
    config = composed((tmp_path / "srun.calls").read_text())
    assert (config.stage.name, config.run_name, config.scale.name) == (stage, "big", "published")
    assert (config.trainer.num_nodes, config.trainer.devices, config.trainer.name) == (4, 8, "deepspeed_zero2")


def test_a_requeued_job_keeps_its_log_and_is_warned_in_time():
    header = (CLUSTER / "stage.sbatch").read_text()
    for line in ("--signal=SIGUSR1@300", "--requeue", "--open-mode=append", "--ntasks-per-node=8"):
        assert f"\n#SBATCH {line}\n" in header


def test_the_jobs_of_a_chain_wait_for_one_another(stand_ins, tmp_path):
    told = run(
        "chain.sh", "run_name=big", **stand_ins, STAGES=" ".join(CHAIN), SBATCH_OPTIONS="--partition=gpu --nodes=4"
    )
    calls = [line.split() for line in (tmp_path / "sbatch.calls").read_text().splitlines()]
    assert told.splitlines() == [f"stage {stage}: job {100 + n}" for n, stage in enumerate(CHAIN, 1)]
    assert not any(word.startswith("--dependency") for word in calls[0])
    for number, (stage, call) in enumerate(zip(CHAIN, calls, strict=True), 1):
        assert {"--partition=gpu", "--nodes=4", f"--job-name=vita-audio-{stage}", f"stage={stage}", "run_name=big"} < {
            *call
        }
        if number > 1:
            assert f"--dependency=afterok:{100 + number - 1}" in call and "--kill-on-invalid-dep=yes" in call


@pytest.mark.slow
@pytest.mark.ci
def test_a_chain_takes_the_stages_of_its_variant(stand_ins, tmp_path):
    run("chain.sh", "variant=vita_audio_plus_vanilla", **stand_ins)
    calls = (tmp_path / "sbatch.calls").read_text().splitlines()
    assert [next(word for word in call.split() if word.startswith("stage=")) for call in calls] == [
        "stage=align",
        "stage=sft",
    ]


def test_nodes_without_a_scheduler_start_the_same_training(stand_ins, tmp_path):
    run("torchrun.sh", "stage=sft", **stand_ins, NODES="2", NODE="1", MASTER="first", GPUS="4")
    call = (tmp_path / "torchrun.calls").read_text()
    assert "--nnodes=2 --nproc-per-node=4 --node-rank=1 --master-addr=first" in call
    assert (composed(call).trainer.num_nodes, composed(call).trainer.devices) == (2, 4)


def test_the_kubernetes_job_starts_one_pod_a_node():
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yml").read_text())
    pod, spec = job["spec"]["template"]["spec"], job["spec"]
    [container] = pod["containers"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(values["NODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(values["GPUS"])
    assert "VITA_AUDIO_PL_INVOCATION" in values
    [rule] = spec["podFailurePolicy"]["rules"]  # which Kubernetes takes beside this policy of restarts alone
    assert pod["restartPolicy"] == "Never" and rule["action"] == "Ignore"
    assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert values["MASTER"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert (CLUSTER / Path(container["command"][-1].split("experiments/cluster/")[1].split()[0])).is_file()
