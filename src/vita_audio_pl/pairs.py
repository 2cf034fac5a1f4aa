"""`python -m vita_audio_pl.pairs`: pairs of answers for stage=dpo, from samples of a model and a judge."""

import os
from dataclasses import dataclass

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.config.fields import require, setting
from vita_audio_pl.evaluation.runs.jobs import SPEAKING_TASKS
from vita_audio_pl.evaluation.settings import EvaluateConfig


@dataclass
class PairsConfig(EvaluateConfig):
    """Settings of `python -m vita_audio_pl.pairs`; those of an evaluation say what is asked, how it is answered, and who judges."""

    answers: int = setting(4, "answers sampled of each prompt", at_least=2, common=True)
    margin: float = setting(
        0.2,
        "least difference between the error rates of the chosen and of the rejected answer, as the judge transcribes them",
        above=0,
        common=True,
    )
    out: str | None = setting(
        None, "folder for answers, pairs, shards, tokenizer and codec; null = pairs/ in the model's run", common=True
    )
    held_out: float = setting(0.05, "share of the pairs held out for validation", at_least=0, below=1)

    def check(self) -> None:
        require(
            self.suite is None and not self.compare and self.step == "all" and self.output is None,
            "pairs take one model and one task: leave suite, compare, step and output out",
        )
        require(self.task in SPEAKING_TASKS, f"task={self.task} has no speech to judge; choose tts or sqa")
        require(self.mode != "all", "mode=all: choose one, such as own, the pattern that the model was trained for")
        require(
            self.sampling.temperature > 0,
            "sampling.temperature=0 gives the same answer each time; choose one above 0, such as 1",
        )
        super().check()


def pairs(config: PairsConfig) -> None:
    """Make the pairs, and say what to do with them."""
    from vita_audio_pl.answer_pairs import make_pairs
    from vita_audio_pl.config.screen import messages
    from vita_audio_pl.model_names import named_model

    model = named_model(config.model or "", config.paths.runs)
    out = make_pairs(config, model, messages())
    print(f"ready for python -m vita_audio_pl.train stage=dpo init_from={model} data.shards={out}/shards run_name=NAME")


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes of the pool are what keeps the cores busy
    run_entry_point(pairs, "pairs", PairsConfig, own=("model",))


if __name__ == "__main__":
    main()
