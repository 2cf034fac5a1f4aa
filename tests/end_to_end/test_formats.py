"""Every file that we write says in which format, itself or by the file that speaks for its folder."""

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from vita_audio_pl.benchmarking.data_settings import DataBenchmark
from vita_audio_pl.benchmarking.data_show import write_figures
from vita_audio_pl.benchmarking.decoding_show import write_decoding
from vita_audio_pl.benchmarking.show import write_results
from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.benchmarking.trainers import write_paces
from vita_audio_pl.benchmarking.trainers_settings import TrainersBenchmark
from vita_audio_pl.evaluation.records import Transcript, TranscriptFile
from vita_audio_pl.planning.show import write_plans

SPOKEN_FOR = {
    # format of others, which their programs read
    "*/tokenizer/*.json": "tokenizers and transformers",
    "*/model/config.json": "transformers",
    "*/model/generation_config.json": "transformers",
    "*/model/*.safetensors.index.json": "transformers",
    "*/speech_input/*": "FunASR",
    "*/wandb/*": "wandb",
    "*/tensorboard/*": "TensorBoard",
    "*/codec/codec.safetensors": "codec.json beside it",
    # many lines or parts under one file that is read first
    "*/checkpoints/step-*/rng-*.json": "state.json of the checkpoint",
    "*/checkpoints/step-*/part-*.json": "state.json of the checkpoint",
    "*/shards/*/skipped.jsonl": "manifest.json of the source",
    "*/eval/*/answers.*.jsonl": "key.json of the evaluation",
    "*/eval/*/transcripts.*.jsonl": "key.json of the evaluation",
    "*/eval/*/utterances*.jsonl": "result.json of the evaluation",
    # what people write in the same form, see docs/your-data.md
    "*/samples/*.jsonl": "input",
}


def formats_in(path: Path) -> Iterator[Any]:
    """What each JSON object, YAML file or table of tensors says of its format."""
    if path.suffix == ".jsonl":
        yield from (json.loads(line).get("format") for line in path.read_text().splitlines())
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            yield (file.metadata() or {}).get("format")
    else:
        found = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
        yield found.get("format") if isinstance(found, dict) else None


def without_format(folder: Path) -> list[str]:
    """Files below a folder that do not say their format, and for which no other speaks."""
    named = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".safetensors")]
    ours = [path for path in named if path.is_file() and not any(fnmatch(str(path), rule) for rule in SPOKEN_FOR)]
    return [str(path.relative_to(folder)) for path in ours if None in formats_in(path)]


def test_figures_that_a_person_asks_for_and_shared_transcripts_say_their_format(tmp_path):
    write_plans([], tmp_path / "plan.json")
    write_results([], TrainingSize(), tmp_path / "training.json")
    write_figures([], DataBenchmark(), tmp_path / "data.json")
    write_paces([], TrainersBenchmark(), tmp_path / "trainers.json")
    write_decoding([], {}, tmp_path)
    transcripts, one = TranscriptFile(tmp_path / "transcripts.jsonl"), Transcript("a", "the dog", 0.5)
    transcripts.append({"sound": one})
    assert len(list(tmp_path.rglob("*.json*"))) == 6 and not without_format(tmp_path)
    assert transcripts.read() == {"sound": one}


def test_every_file_that_the_demo_leaves_says_its_format(smoke_demo):
    assert not without_format(smoke_demo.folder)
    assert len(list(smoke_demo.folder.rglob("*.json"))) > 30
