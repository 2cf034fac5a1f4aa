"""`python -m vita_audio_pl.train`: train one stage, or the chain of stages."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.errors import UserError
from vita_audio_pl.model_names import named_model
from vita_audio_pl.processes import check_agent, check_status, requeue_on_signal, run_command
from vita_audio_pl.storage.model_folders import may_name_checkpoint
from vita_audio_pl.training.checks import apply_stage_settings, check_train_config
from vita_audio_pl.training.finetune import with_finetune
from vita_audio_pl.training.run_folder.origin import start_tokenizer
from vita_audio_pl.training.settings import CHAIN, TrainConfig
from vita_audio_pl.training.stage.launch import rank_of_launch

_WORLD_PROMPTS = 450  # of the spoken world, that a stage on pairs lets its parent answer


def train(config: TrainConfig) -> float | None:
    """Train what the configuration says; the last validation loss, for sweepers that optimise it."""
    from vita_audio_pl.training.stage.invocation import invoked
    from vita_audio_pl.training.stage.launch import is_first_process

    check_train_config(config)
    rank_of_launch(config.trainer)  # a left-over rank is refused before anything is written
    check_agent()
    first = is_first_process()
    with (
        requeue_on_signal(config.callbacks.requeue and first),
        invoked(config.force),
    ):  # a stage and its parents, or the stages of a chain
        return _train(config)


def _train(config: TrainConfig) -> float | None:
    from vita_audio_pl.sweeps.chain import check_pairs_given, command_overrides, missing_parents, train_chain
    from vita_audio_pl.sweeps.sweep import Sweep
    from vita_audio_pl.training.run_folder.layout import stage_folder

    if config.stage.name == CHAIN:
        check_pairs_given(config.variant.stages, command_overrides())
    if config.stage.name == CHAIN and config.experiment.name:
        from vita_audio_pl.sweeps.ablation import train_arm

        return train_arm(config, command_overrides(), Sweep.current(), prepare_data)
    if config.stage.name == CHAIN:
        train_chain(config, config.variant.stages, command_overrides())
        return stage_folder(config, config.variant.stages[-1]).last_metric("val/loss")
    if config.with_parents:
        parents = missing_parents(config)
        check_pairs_given([*parents, config.stage.name], command_overrides())
        train_chain(config, parents, command_overrides())

    # torch is imported only now: the entry has set the environment that it reads, and mistakes are found quickly
    from vita_audio_pl.data.mixture import load_mixture
    from vita_audio_pl.training.stage.data import prepared_data
    from vita_audio_pl.training.stage.train import heads_of_stage, train_stage
    from vita_audio_pl.training.stage.trainer import check_devices

    n_heads = heads_of_stage(config)
    check_devices(config.trainer)
    load_mixture(config.stage.mixture)  # before the world is made: that takes minutes
    prepare_data(config)
    train_stage(config, prepared_data(config, n_heads))
    return stage_folder(config, config.stage.name).last_metric("val/loss")


def prepare_data(config: TrainConfig) -> None:
    """Make the spoken world, in the ids of a pretrained model's tokenizer; where shards are given, nothing is made.

    For a stage on pairs of answers, the parent answers the world's training texts, and a judge makes pairs of the answers.
    """
    from vita_audio_pl.preparation import prepare_spoken_world, world_tokenizer

    if not config.data.shards and config.stage.on_pairs:
        config.data.shards = str(_world_pairs(config) / "shards")
    elif not config.data.shards:
        text = start_tokenizer(config)
        shards = prepare_spoken_world(
            config.data.world_folder,
            str(config.data.spoken_world),
            codebook_size=config.codec.codebook_size,
            keep_audio=config.variant.has_audio_encoder,
            text=text,
        )
        config.data.shards = str(shards)
        config.data.tokenizer_folder = str(world_tokenizer(Path(config.data.world_folder), text))


def _world_pairs(config: TrainConfig) -> Path:
    """Folder of the pairs that the stage's parent gives on the spoken world; made by a process of their own."""
    from vita_audio_pl.answer_pairs import are_made
    from vita_audio_pl.training.run_folder.layout import stage_folder
    from vita_audio_pl.training.run_folder.manifest import StageManifest
    from vita_audio_pl.training.stage.launch import is_first_process, is_one_of_several
    from vita_audio_pl.training.stage.train import find_parent

    parent = find_parent(config)
    if parent is None:
        raise UserError(
            f"stage '{config.stage.name}' compares answers of a finished model, and starts from a plain backbone"
        )
    out = stage_folder(config, "pairs").root
    if not are_made(out, StageManifest.of(parent).weights):
        bench = "spoken_world_smoke" if config.data.spoken_world == "smoke" else "spoken_world"
        words = [
            f"model={parent}",
            f"bench={bench}",
            f"bench.root={config.data.world_folder}",
            f"out={out}",
            f"limit={_WORLD_PROMPTS}",
        ]
        # the first process alone may make them where Lightning starts the others after it
        if not is_first_process() or is_one_of_several(config.trainer):
            raise UserError(
                f"stage '{config.stage.name}' has no pairs of answers yet, and several processes cannot make them together: first "
                f"run python -m vita_audio_pl.pairs {' '.join(words)}"
            )
        status = run_command([sys.executable, "-m", "vita_audio_pl.pairs", *words])
        check_status(status, "making pairs of answers", f"what was sampled is in {out}")
    return out


def _settings(config: DictConfig, given: Sequence[str] = ()) -> None:
    """As `apply_stage_settings`; a checkpoint that the stage starts from is made a model first."""
    if config.init_from is not None:
        config.init_from = _model(config.init_from, config.paths.runs)
    apply_stage_settings(config, given)


def _words(arguments: list[str]) -> list[str]:
    """As `with_finetune`; a checkpoint that is fine-tuned is made a model first."""
    runs = next((a.partition("=")[2] for a in arguments if a.startswith("paths.runs=")), "runs")
    word = "finetune="
    return with_finetune([word + _model(a[len(word) :], runs) if a.startswith(word) else a for a in arguments])


def _model(name: str, runs: str) -> str:
    """`name`, or the model folder of the checkpoint that it may name."""
    return str(named_model(name, runs)) if may_name_checkpoint(name) else name


def main() -> None:
    run_entry_point(train, "train", TrainConfig, _settings, expand=_words)


if __name__ == "__main__":
    main()
