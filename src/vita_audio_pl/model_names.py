"""What a person names as a model, checkpoints included: the one function that every command asks."""

from pathlib import Path

from vita_audio_pl.storage.model_folders import find_model, may_name_checkpoint


def named_model(name: Path | str, runs: Path | str = "runs") -> Path:
    """The model folder that a person names, as `storage.model_folders.find_model` finds it; a checkpoint is made one.

    Of a launch whose processes all ask, the first makes the model, and the others wait for it.

    Args:
        name: what `find_model` takes, or a checkpoint, as `runs/NAME/STAGE/checkpoints/step-120`.

    Raises:
        UserError: there is no model, the name is ambiguous, or what the checkpoint needs is not there.
    """
    if may_name_checkpoint(name):
        # training comes with torch and Lightning, which the names of folders do not need
        from vita_audio_pl.training.checkpoints.folders import find_checkpoint
        from vita_audio_pl.training.stage.checkpoint_model import model_of_checkpoint
        from vita_audio_pl.training.stage.launch import is_first_process

        for place in dict.fromkeys([Path(name), Path(runs) / name]):
            checkpoint = find_checkpoint(place)
            if checkpoint is not None:
                return model_of_checkpoint(checkpoint, is_first_process())
    return find_model(name, runs)
