"""`train finetune=DIR shards=DIR`: expands to the settings for fine-tuning a finished model on your own data."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vita_audio_pl.data.prepared import MANIFEST, Manifest
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.model_folders import find_model, read_manifest

MIXTURE = "mixture.yaml"
WORDS = ("finetune", "shards", "lora")
LORA_RANK = 8
_EPOCHS = ((500, 10), (5_000, 5), (50_000, 3), (math.inf, 2))
"""Passes over the data, by the largest number of samples that they apply to."""
_FULL_RATE_HOURS = 10.0
_LORA_FACTOR = 5.0
_MOST_STEPS, _FEWEST_STEPS = 4000, 20
_CHOSEN = ("stage.steps", "stage.epochs", "stage.rows_per_step", "stage.learning_rate")
"""Settings that are chosen by the size of the data, where none of them is given."""
_PUBLISHED = {"learning_rate": 5e-5, "head_rate_factor": 10.0, "sequence_length": 2048, "rows_per_step": 32}


@dataclass(frozen=True)
class Choice:
    """Settings chosen by the size of the data.

    Attributes:
        learning_rate: peak learning rate.
        rows_per_step: packed rows per optimiser step; `steps` of them are `epochs` passes over the data.
        why: one line that explains the choice.
    """

    learning_rate: float
    rows_per_step: int
    steps: int
    epochs: int
    why: str


def choose(samples: int, tokens: int, hours: float, usual: dict[str, Any], lora: bool) -> Choice:
    """Learning rate and steps for data of this size.

    Args:
        tokens: tokens in one pass over the samples, about.
        hours: hours of audio; 0 for text.
        usual: `learning_rate`, `sequence_length` and `rows_per_step` of the stage that the model comes from.
    """
    epochs = next(number for most, number in _EPOCHS if samples <= most)
    rows = max(1, math.ceil(tokens / (0.9 * usual["sequence_length"])))
    rows_per_step = min(int(usual["rows_per_step"]), max(1, 2 ** int(math.log2(max(1, rows // 10)))))
    steps = min(_MOST_STEPS, max(_FEWEST_STEPS, math.ceil(epochs * rows / rows_per_step)))
    factor = (1.0 if hours >= _FULL_RATE_HOURS else 0.5) * (_LORA_FACTOR if lora else 1.0)
    rate = float(f"{usual['learning_rate'] * factor:.2g}")
    why = (
        f"{samples} samples, {hours:.2f} h of audio, about {tokens} tokens: {epochs} passes are stage.steps={steps} of "
        f"stage.rows_per_step={rows_per_step}, at stage.learning_rate={rate:g} ({factor:g} times that of the model's own last "
        f"stage{', since adapters train alone' if lora else ''})"
    )
    return Choice(rate, rows_per_step, steps, epochs, why)


def with_finetune(arguments: Sequence[str]) -> list[str]:
    """The command line with `finetune=`, `shards=` and `lora=` expanded; other settings given on it win.

    Raises:
        UserError: one is given without the others, or model or data cannot be found or do not match.
    """
    said = dict(
        argument.split("=", 1) for argument in arguments if argument.partition("=")[0] in WORDS and "=" in argument
    )
    if not said:
        return list(arguments)
    if "finetune" not in said or "shards" not in said:
        raise UserError(
            "fine-tuning takes finetune=MODEL and shards=DIR, which python -m vita_audio_pl.prepare samples=FILE.jsonl "
            "model=MODEL makes (data.shards and init_from are for other stages)"
        )
    if said.get("lora", "false").lower() not in ("true", "false"):
        raise UserError(f"lora is '{said['lora']}': give lora=true to train adapters alone, or leave it out")
    rest = [argument for argument in arguments if argument.partition("=")[0] not in WORDS]
    runs = next((a.partition("=")[2] for a in rest if a.startswith("paths.runs=")), "runs")
    lora = said.get("lora", "false").lower() == "true"
    given = {argument.partition("=")[0].lstrip("+") for argument in rest}
    meant, why = _settings(find_model(said["finetune"], runs), Path(said["shards"]), lora, "stage.mixture" in given)
    instead = [argument for argument in rest if argument.partition("=")[0].lstrip("+") in _CHOSEN]
    print(why + (f", but {', '.join(instead)} as given" if instead else "; give others to change them"), flush=True)
    if "stage.epochs" in given:  # the command line sets the length in another way, so the chosen one is dropped
        given |= {"stage.steps", "callbacks.validate_every"}
    return [*(setting for setting in meant if setting.partition("=")[0] not in given), *rest]


def _settings(model: Path, shards: Path, lora: bool, mixture_given: bool) -> tuple[list[str], str]:
    """Overrides for fine-tuning `model` on the data in `shards`, and a line that explains them."""
    from vita_audio_pl.inference.loading import read_model_facts  # imports torch

    facts, manifest = read_model_facts(model), read_manifest(model)
    # only a folder that `prepare` makes inside of the one with the mixture leads there
    inside = 1 if shards.name == "shards" else 2 if (shards / MANIFEST).is_file() else 0
    shards = next((up for up in (shards, *shards.parents[:inside]) if (up / MIXTURE).is_file()), shards)
    folder = shards / "shards" if (shards / "shards").is_dir() else shards
    sources = [Manifest.load(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    sources = [source for source in sources if not source.source.endswith(".dev")]
    if not sources:
        how = f"samples={shards} model={model} out=DIR, and give shards=DIR"
        if not shards.is_file():
            how = f"samples=FILE.jsonl model={model} out={shards}"
        raise UserError(f"{folder} holds no prepared data; make it with python -m vita_audio_pl.prepare {how}")
    if (
        other := next((source for source in sources if source.tokenizer != facts.tokenizer.fingerprint), None)
    ) is not None:
        raise UserError(
            f"'{other.source}' in {folder} was prepared with another tokenizer than that of {model}; prepare it with model={model}"
        )
    config = manifest.get("config") or {}
    stage, rendering = config.get("stage") or {}, config.get("rendering") or {}
    own = stage if manifest.get("stage") == "sft" else {}
    usual = {name: own.get(name, default) for name, default in _PUBLISHED.items()}
    if own and ((config.get("model") or {}).get("lora") or {}).get("only"):
        usual["learning_rate"] /= _LORA_FACTOR  # that was the rate of adapters
    if stage:  # the row length that the model was trained with
        usual["sequence_length"] = stage.get("sequence_length", usual["sequence_length"])
    tokens = sum(source.text_tokens + round(1.3 * source.codes) + 16 * source.samples for source in sources)
    samples, hours = sum(source.samples for source in sources), sum(source.seconds for source in sources) / 3600
    choice = choose(samples, tokens, hours, usual, lora)
    settings = [
        f"run_name=finetune-{shards.resolve().name}{'-lora' if lora else ''}",
        *continuing(model, "sft"),
        f"data.shards={folder}",
        f"stage.learning_rate={choice.learning_rate:g}",
        f"stage.head_rate_factor={usual['head_rate_factor']:g}",
        f"stage.sequence_length={usual['sequence_length']}",
        f"stage.rows_per_step={choice.rows_per_step}",
        f"stage.steps={choice.steps}",
        f"callbacks.validate_every={max(1, choice.steps // 5)}",
        *(f"rendering.{name}={value}" for name, value in _rendering(rendering).items()),
    ]
    if not (shards / MIXTURE).is_file() and not mixture_given:
        raise UserError(
            f"{shards} has no {MIXTURE}, which preparing it ends with: give that command again, or stage.mixture=FILE.yaml"
        )
    if (shards / MIXTURE).is_file():
        settings.append(f"stage.mixture={shards / MIXTURE}")
    settings += codec_settings(sources)
    if lora:
        settings += [f"model.lora.rank={LORA_RANK}", "model.lora.only=true"]
    if shutil.which("nvidia-smi"):
        settings.append("trainer=gpu")
    return settings, f"fine-tuning {model} on {folder}: {choice.why}"


def continuing(model: Path, stage: str) -> list[str]:
    """The settings with which `stage` goes on from `model`, whatever it was trained as."""
    from vita_audio_pl.inference.loading import read_model_facts  # imports torch

    facts, manifest = read_model_facts(model), read_manifest(model)
    hears, n_heads = facts.vocabulary.continuous_input, facts.n_heads
    variant = manifest.get("variant") or (
        f"vita_audio_plus_{'boost' if n_heads else 'vanilla'}"
        if hears
        else f"vita_audio_{'balance' if facts.pattern.runs[1:2] == (4,) else 'boost'}"
    )
    return [
        f"stage={stage}",
        f"variant={variant}",
        f"init_from={model}",
        f"variant.parents.{stage}=[{manifest.get('stage') or 'sft'}]",
        f"n_heads={n_heads}",
        f"text_audio_interval_ratio={list(facts.ratio.runs)}".replace(" ", ""),
        f"decode_pattern={list(facts.pattern.runs)}".replace(" ", ""),
    ]


def codec_settings(sources: Sequence[Manifest]) -> list[str]:
    """The settings for the codec that made the codes of prepared sources; none where they have no audio."""
    codec = next((source.codec for source in sources if source.codec), {})
    return [f"codec.name={codec['name']}", f"codec.codebook_size={codec['codebook_size']}"] if codec else []


def _rendering(held: dict[str, Any]) -> dict[str, Any]:
    """How the model's own data was rendered; published weights were trained without any of these."""
    plain = {"lead_in_codes": 0, "prompt_corruption": 0.0, "text_weight": 1.0, "audio_weight": 1.0}
    return {name: held.get(name, default) for name, default in plain.items()}
