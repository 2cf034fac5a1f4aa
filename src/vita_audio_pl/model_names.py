"""Resolving the name of a model, checkpoints included; used by every command."""

from pathlib import Path

from vita_audio_pl.storage.model_folders import find_model, may_name_checkpoint


def named_model(name: Path | str, runs: Path | str = "runs") -> Path:
    """The model folder of a name, see `storage.model_folders.find_model`; a checkpoint is converted to one.

    If all processes of a launch call this, the first converts the checkpoint and the others wait.

    Args:
        name: a name for `find_model`, or a checkpoint such as `runs/NAME/STAGE/checkpoints/step-120`.

    Raises:
        UserError: there is no such model, the name is ambiguous, or the checkpoint lacks something.
    """
    if may_name_checkpoint(name):
        # importing training loads torch and Lightning, which plain model names do not need
        from vita_audio_pl.training.checkpoints.folders import find_checkpoint
        from vita_audio_pl.training.stage.checkpoint_model import model_of_checkpoint
        from vita_audio_pl.training.stage.launch import is_first_process

        for place in dict.fromkeys([Path(name), Path(runs) / name]):
            checkpoint = find_checkpoint(place)
            if checkpoint is not None:
                return model_of_checkpoint(checkpoint, is_first_process())
    return find_model(name, runs)
