"""Host memory of stages: a start takes the weights once, and saving and hand-over fit beside what trains."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests.patience import PATIENCE
from vita_audio_pl.assets import asset_dir
from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.planning.settings import PlanConfig
from vita_audio_pl.planning.stage_plan import plan_stage
from vita_audio_pl.training.checks import apply_stage_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE)]

LAYERS = int(os.environ.get("LAYERS", "12"))
"""Of a random model of 12.6 million parameters each: 12 take 2.4 GB, 50 (0.63 billion) 10.1 GB."""
SIZES = (
    "model.hidden_size=1024", "model.intermediate_size=3072", "model.num_attention_heads=16",
    "model.num_key_value_heads=8", f"model.num_hidden_layers={LAYERS}", "stage.rows_per_step=1", "stage.steps=3",
    "trainer.rows_per_device=1", "callbacks.save_every=2", "callbacks.samples.every_steps=0", "callbacks.validate_every=100",
)  # fmt: skip
IMPORTS = "import toy, vita_audio_pl.training.stage.train; input()"


def own_memory(process: "subprocess.Popen[bytes]") -> int:
    """Bytes that a process has for itself; what it maps of files is not counted."""
    found = re.search(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) << 10 if found else 0


def test_saving_and_hand_over_fit_beside_what_trains(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    here = Path(__file__).parent
    with subprocess.Popen([sys.executable, "-c", IMPORTS], cwd=here, env=environment, stdin=subprocess.PIPE) as idle:
        before = 0
        while (now := own_memory(idle)) > before or now < 100 << 20:
            before = now
            time.sleep(3)
        idle.communicate(b"\n")
    most, log = 0, tmp_path / "told"
    command = [sys.executable, str(here / "train_toy.py"), str(tmp_path), "stage=align", *SIZES]
    with log.open("wb") as told, subprocess.Popen(command, env=environment, stdout=told, stderr=told) as training:
        while training.poll() is None:
            most = max(most, own_memory(training))
            time.sleep(0.005)
    text = log.read_text()
    assert training.returncode == 0, text
    weights = 4 * int(re.findall(r"([\d,]+) parameters train", text)[0].replace(",", ""))
    used = (most - before) / (4 * weights)
    size = f"{weights / 4e6:.0f} million parameters"
    print(f"{size}: {used:.3f} times weights, gradients and moments; {most / 1e9:.2f} GB in all")
    assert used <= 1.25
    model = next(tmp_path.glob("runs/*/align/model/model*.safetensors"))
    assert model.stat().st_size > weights // 2


def left_in_files(engine: str, rank: int) -> set[str]:
    """Moments until which frozen weights lie in their file's pages, to which nothing has written.

    DeepSpeed sends rank 0's to the others, and at stage 3 cuts them after that.
    """
    if engine == "cpu" or (engine == "deepspeed_zero2" and rank == 0):
        return {"built", "started", "trained", "handed_over"}
    if engine == "deepspeed_zero3" and rank == 0:
        return {"built", "started"}
    return {"built"} if engine.startswith("deepspeed") else set()


@pytest.mark.parametrize("engine", ["cpu", "cpu_ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_a_start_does_not_take_the_weights_twice_and_plans_foresee_the_rest(engine, tmp_path):
    """Of random weights, and of a parent's in whose stage the backbone is frozen; saving and hand-over, and bytes that are written."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # what is freed goes back to the system, or the least tensors of a small model would be seen to stay
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    ranks = 1 if engine == "cpu" else 2
    small = (f"trainer={engine}", f"trainer.devices={ranks}", "stage.steps=3", "trainer.accelerator=cpu",
             "trainer.precision=32-true", "stage.rows_per_step=2", "stage.sequence_length=32")  # fmt: skip

    def measured(stage: str, *sizes: str) -> list[dict[str, int]]:
        script = Path(__file__).parent / "start_memory.py"
        command = [sys.executable, str(script), str(tmp_path), f"stage={stage}", *sizes, *small]
        subprocess.run(command, env=environment, check=True, timeout=PATIENCE)
        return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("start.rank-*.json"))]

    imports = measured("align", "run_name=tiny")  # engines import much, and late
    for stage, heads in (("align", 0), ("mtp1", 1)):
        ranks_found = measured(stage, *SIZES)
        register_schema("plan", PlanConfig)
        words = ("text_entries=20", "codec.codebook_size=16", "rows.document_tokens=12", "scale=small")
        with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
            config = to_dataclass(compose("plan", [f"stage={stage}", *words, *SIZES, *small]), apply_stage_settings)
        plan = plan_stage(config, heads)
        planned = plan.host
        mapped = 4 * sum(plan.frozen.values())
        for number, (found, tiny) in enumerate(zip(ranks_found, imports, strict=True)):
            size = found.pop("model")
            took = {
                moment: value - tiny[moment] + (mapped if moment in left_in_files(engine, number) else 0)
                for moment, value in found.items()
            }
            most = max(took.values())
            told = ", ".join(f"{moment} {value / size:.2f}" for moment, value in took.items())
            print(
                f"{engine}, {stage}, rank {number}: {told} models; planned against measured: start "
                f"{planned.start / took['started']:.2f}, in all {planned.rank / most:.2f}",
                flush=True,
            )
            assert took["built"] <= 1.25 * size
            assert planned.start == pytest.approx(took["started"], rel=0.15)
            # how much of a save waits in memory depends on the disk
            assert (planned.rank - planned.save) / 1.15 <= most <= 1.15 * planned.rank
        [folder] = {*tmp_path.glob(f"runs/*/{stage}")} - {tmp_path / "runs" / "tiny" / stage}
        parts = [path.stat().st_size for path in folder.glob("checkpoints/step-00000003.ckpt/part-*.safetensors")]
        assert len(parts) == ranks and max(parts) == pytest.approx(planned.written, rel=0.01)
        assert sum(parts) == pytest.approx(planned.checkpoint, rel=0.01)
        assert (folder / "model" / "model.safetensors").stat().st_size == pytest.approx(planned.model, rel=0.01)
