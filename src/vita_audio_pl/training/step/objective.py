"""The objective of a stage, from its settings."""

from vita_audio_pl.config.component import plain
from vita_audio_pl.models.objective_settings import ObjectiveSettings
from vita_audio_pl.models.objectives import Objective
from vita_audio_pl.models.preference import Preference
from vita_audio_pl.text.vocabulary import Vocabulary
from vita_audio_pl.training.run_folder.identity import freezes_backbone
from vita_audio_pl.training.settings import TrainConfig


def configured_objective(config: TrainConfig, vocabulary: Vocabulary) -> Objective:
    """The objective that the configuration names, with the options that were given; on pairs of answers, `Preference`.

    Heads are weighed beside the backbone: where that is frozen, their weight is 1.
    """
    frozen = freezes_backbone(config.stage.freeze, plain(config))
    settings: ObjectiveSettings = config.objective
    if config.stage.on_pairs:
        return Preference(
            config.stage.beta, config.stage.sft_weight, kernel=settings.kernel, chunk_rows=settings.chunk_rows
        )
    return settings.build(vocabulary, weight=1.0 if frozen else settings.weight)
