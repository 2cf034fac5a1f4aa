"""`python -m vita_audio_pl.export`: convert a model folder to the published layout, or to a plain backbone folder."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.decoding import QUANTIZE, QUANTIZE_MEANING
from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.config.fields import setting


@dataclass
class ExportConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.export`."""

    source: str = setting(
        MISSING,
        "a run, a stage, a checkpoint, a model folder, adapters, published weights, or an exported backbone",
        common=True,
    )
    target: str = setting(MISSING, "new folder", common=True)
    format: str = setting(
        "released",
        "released; backbone: transformers loads it as Qwen2 or Qwen3, with the heads in a file of their own; or vllm: the "
        "same, with the heads ready to draft in vLLM",
        choices=("released", "backbone", "vllm"),
        common=True,
    )
    dtype: str | None = setting(
        None,
        "float32, bfloat16 or float16; null = the source's",
        choices=("float32", "bfloat16", "float16"),
        common=True,
    )
    quantize: str | None = setting(None, f"{QUANTIZE_MEANING}; for format=released", choices=QUANTIZE, common=True)
    codec_folder: str | None = setting(
        None, "folder of the audio codec; null = the one in the model folder, if any", exists=True
    )
    licence: str | None = setting(
        None, "licence for the model card, as the hub spells it (apache-2.0); null = not given"
    )
    push_to_hub: str | None = setting(None, "Hugging Face repository to upload to, OWNER/NAME; null = no upload")
    private: bool = setting(True, "make a new repository private")
    max_shard_gb: float = setting(5.0, "largest weight file, GB", above=0, common=True)


def export(config: ExportConfig) -> None:
    """Convert the model and print where it is."""
    import torch

    from vita_audio_pl.inference.exporting import export_model
    from vita_audio_pl.model_card import model_card, push_to_hub
    from vita_audio_pl.model_names import named_model

    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    limit = round(config.max_shard_gb * 10**9)
    source, target = named_model(config.source, config.paths.runs), Path(config.target)
    export_model(
        source,
        config.target,
        config.format,
        dtype=dtype,
        max_shard_bytes=limit,
        codec_folder=config.codec_folder,
        quantize=config.quantize,
    )
    (target / "README.md").write_text(model_card(source, target, config.format, config.licence), encoding="utf-8")
    held = "" if config.quantize is None else f", its weights in {config.quantize}"
    print(f"{config.target}: {config.source} in the {config.format} layout{held}")
    if config.format == "vllm":
        from vita_audio_pl.models.vllm_export import serve_command

        print(serve_command(target, config.target))
    if config.push_to_hub is not None:
        print(push_to_hub(target, config.push_to_hub, config.private))


def main() -> None:
    run_entry_point(export, "export", ExportConfig)


if __name__ == "__main__":
    main()
