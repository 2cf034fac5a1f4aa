"""`python -m vita_audio_pl.export`: a model folder in the published layout, or as a plain Qwen2 folder."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.config.schema import PathsConfig


@dataclass
class ExportConfig:
    """Everything that `python -m vita_audio_pl.export` can be told."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    source: str = MISSING  # model folder, folder of its stage, published weights, or an exported backbone
    target: str = MISSING  # new folder
    format: str = "released"  # or backbone: transformers loads it as Qwen2, with the heads in a file of their own
    dtype: str | None = None  # float32, bfloat16 or float16; null keeps the source's
    max_shard_gb: float = 5.0  # weights are split into files of this size at most


def export(config: ExportConfig) -> None:
    """Writes the folder and says so."""
    import torch

    from vita_audio_pl.errors import UserError
    from vita_audio_pl.inference.exporting import export_model

    if config.dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"dtype is '{config.dtype}'; it must be float32, bfloat16, float16 or null")
    if config.max_shard_gb <= 0:
        raise UserError(f"max_shard_gb is {config.max_shard_gb}; it must be positive")
    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    limit = round(config.max_shard_gb * 10**9)
    export_model(config.source, config.target, config.format, dtype=dtype, max_shard_bytes=limit)
    print(f"{config.target}: {config.source} in the {config.format} layout")


def main() -> None:
    run_entry_point(export, "export", ExportConfig)


if __name__ == "__main__":
    main()
