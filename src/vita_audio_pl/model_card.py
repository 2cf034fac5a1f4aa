"""The model card of an exported folder, from the files of its run, and the upload to the Hugging Face hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vita_audio_pl.config.screen import markdown_text
from vita_audio_pl.data.card import card_of
from vita_audio_pl.data.prepared import Manifest
from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import read_json_if_there
from vita_audio_pl.models.vllm_export import serve_command
from vita_audio_pl.reporting.results.files import read_result
from vita_audio_pl.reporting.tables import markdown, results_table
from vita_audio_pl.storage.model_folders import CONFIG, read_manifest, run_of

_MOST_STAGES = 20
_TOLD = ("steps", "n_heads", "text_audio_interval_ratio", "decode_pattern")
"""What is told of a stage beside its name, as its manifest calls it."""


def model_card(source: Path, target: Path, layout: str, licence: str | None, languages: tuple[str, ...] = ()) -> str:
    """`README.md` of an exported folder: usage, stages, data, results.

    Args:
        source: the model folder that was exported; the card uses the files of its run and its parents.
        target: the exported folder, whose name is used.
        layout: layout of the folder.
        licence: licence of the weights, as the hub spells it; None if unknown.
        languages: languages of the model; by default those of the data.
    """
    stages = list(_stages(source))
    cards = _data(stages[0][1]) if stages else []
    spoken = languages or tuple(sorted({language for card in cards for language in card.languages}))
    head = {
        "library_name": "transformers",
        "tags": ["speech", "speech-language-model", "vita-audio", "multi-token-prediction"],
        "pipeline_tag": "audio-text-to-text",
        "license": licence or "unknown",
        "language": list(spoken),
    }
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items() if value), "---", ""]
    lines += [f"# {markdown_text(target.resolve().name)}", "", *_use(target, layout), ""]
    if stages:
        lines += [
            "## How it was trained",
            "",
            "| stage | steps | heads | text:audio interval ratio | decoding pattern |",
        ]
        lines += ["|---|---|---|---|---|"]
        lines += [
            "| " + " | ".join(map(markdown_text, [_named(m), *(m.get(name, "") for name in _TOLD)])) + " |"
            for _, m in reversed(stages)
        ]
        first = stages[-1][1]
        start = (first.get("config") or {}).get("model", {}).get("pretrained")
        lines += [
            "",
            f"Started from {markdown_text(Path(start).name) if start else 'random weights'}."
            if not first.get("parent")
            else "",
        ]
    if cards:
        lines += ["", "## Data", "", "| source | hours | samples | languages | licence |", "|---|---|---|---|---|"]
        lines += [
            f"| {markdown_text(c.source)} | {c.hours:,.1f} | {c.samples:,} | {markdown_text(', '.join(c.languages))} | "
            f"{markdown_text(c.licence or 'not given')} |"
            for c in cards
        ]
    results = _results(source, stages, target)
    lines += ["", "## Results", ""]
    lines += [markdown(results_table(results)) if results else "None of its evaluations was found beside the run."]
    return "\n".join(lines) + "\n"


def push_to_hub(folder: Path, repository: str, private: bool) -> str:
    """Upload an exported folder; returns the URL of the commit.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        hub = HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        sent = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported model")
        return str(sent.commit_url)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{folder} is written, and was not uploaded to {repository}: {said}") from error


def _use(folder: Path, layout: str) -> list[str]:
    quantize = read_json_if_there(folder / CONFIG).get("quantize")
    name = folder.resolve().name
    command = f"""`python -m vita_audio_pl.generate model={name} task=tts 'text="..."'` answers with text and sound."""
    load = f'AutoModelForCausalLM.from_pretrained("{name}")'
    if quantize:
        return [
            "```python",
            "from vita_audio_pl import load_speech_model  # pip install vita-audio-pl[quantize]",
            "",
            f'loaded = load_speech_model("{name}")  # linear layers in {quantize}; transformers does not read them so',
            "```",
            "",
            command,
        ]
    if layout in ("backbone", "vllm"):
        lines = [
            "```python",
            "from transformers import AutoModelForCausalLM",
            "",
            f"model = {load}  # the backbone alone",
            "```",
        ]
        if layout == "vllm":
            lines += ["", "```sh", "pip install vita-audio-pl  # beside vllm", serve_command(folder, name), "```"]
        return lines
    return [
        "```python",
        "import vita_audio_pl  # pip install vita-audio-pl",
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = {load}  # generate() writes the backbone's tokens",
        "speech = model.speech_lm()  # the same weights with their heads, for vita_audio_pl's decoder",
        "```",
        "",
        command,
    ]


def _named(manifest: dict[str, Any]) -> str:
    """A stage as the table calls it."""
    beta = ((manifest.get("config") or {}).get("stage") or {}).get("beta")
    return f"{manifest['stage']}, on pairs of answers (DPO, beta {beta:g})" if beta else str(manifest["stage"])


def _stages(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A model folder and its ancestors with their manifests, the last stage first."""
    for _ in range(_MOST_STAGES):
        manifest = read_manifest(folder)
        if not manifest:
            return
        yield folder, manifest
        if not manifest.get("parent"):
            return
        folder = folder.parent / str(manifest["parent"])


def _data(manifest: dict[str, Any]) -> list[Any]:
    """Cards of the prepared sources that the last stage read, if they still exist."""
    data = (manifest.get("config") or {}).get("data") or {}
    cards = []
    for path in sorted(Path(data.get("shards") or "-").glob("*/manifest.json")):
        try:
            cards.append(card_of(Manifest.load(path.parent)))
        except UserError:  # damaged, or of another version: the card omits it
            continue
    return [card for card in cards if not card.source.endswith(".dev")]


def _results(source: Path, stages: list[tuple[Path, dict[str, Any]]], target: Path) -> list[dict[str, Any]]:
    """Results of evaluations of exactly these weights, held in as many bits as in the exported folder."""
    run = run_of(source)
    if run is None or not stages:
        return []
    held, before = (read_json_if_there(folder / CONFIG).get("quantize") for folder in (target, source))
    quantize = None if before else held  # results say it only where the evaluated folder does not
    found = []
    for path in sorted(run.glob("eval/*/*/*/*/result.json")):
        try:
            result = read_result(path)
        except UserError:
            continue
        same = result.weights == stages[0][1].get("weights") and result.figures.get("quantize") == quantize
        if result.weights and same:
            found.append(result.figures)
    return found
