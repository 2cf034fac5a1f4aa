"""What the training tests share."""

from collections.abc import Callable

import pytest
import toy

from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.stage.train import train_stage


@pytest.fixture
def trained(tmp_path) -> Callable[..., StageFolder]:
    """Trains a toy stage in this process and returns its folder; stages of one test share a run."""

    def train(stage: str, *overrides: str, **data) -> StageFolder:
        config = toy.toy_config(tmp_path / "runs", f"stage={stage}", "run_name=toy", *overrides)
        rows = config.stage.rows_per_step // (config.trainer.rows_per_device or config.stage.rows_per_step)
        module = toy.ToyData(
            rows=config.stage.rows_per_step // rows,
            accumulate=rows,
            hears=config.variant.has_audio_encoder,
            text_weight=config.rendering.text_weight,
        )
        return StageFolder(train_stage(config, toy.toy_data(tmp_path / "world", module, **data)).parent)

    return train
