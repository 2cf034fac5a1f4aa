"""`python -m vita_audio_pl.merge`: merge models, as their mean or by task vectors."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.config.fields import setting


@dataclass
class MergeConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.merge`."""

    models: list[str] = setting(
        MISSING, "models to merge: runs, stages, checkpoints, model folders, published weights", common=True
    )
    target: str = setting(MISSING, "new folder", common=True)
    weights: list[float] | None = setting(
        None,
        "weights of the models, in order: shares of the mean, or factors of the task vectors; null = equal shares",
        at_least=-100,
        at_most=100,
        common=True,
    )
    base: str | None = setting(
        None,
        "model that all were trained from: adds what each learnt since to it; null = the models' mean",
        common=True,
    )


def merge(config: MergeConfig) -> None:
    """Merge the models and print where the result is."""
    from vita_audio_pl.merging import merge_models
    from vita_audio_pl.model_names import named_model

    runs = config.paths.runs
    models = [named_model(name, runs) for name in config.models]
    base = None if config.base is None else named_model(config.base, runs)
    merge_models(models, Path(config.target), config.weights, base)
    how = "the mean of" if base is None else f"{config.base} with the task vectors of"
    print(f"{config.target}: {how} {', '.join(config.models)}")


def main() -> None:
    run_entry_point(merge, "merge", MergeConfig)


if __name__ == "__main__":
    main()
