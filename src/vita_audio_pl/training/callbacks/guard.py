"""Steps that would spoil the model: skipped, counted, named, and undone where they could not be skipped."""

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from vita_audio_pl.errors import UserError
from vita_audio_pl.packed import PackedBatch
from vita_audio_pl.training.callback_settings import GuardConfig
from vita_audio_pl.training.checkpoints.folders import DOUBT, GOOD, checkpoints, move_aside, step_of
from vita_audio_pl.training.checkpoints.restore import newest_usable, restore_newest
from vita_audio_pl.training.checkpoints.writer import CheckpointWriter
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.step.freezing import bunch
from vita_audio_pl.training.step.module import SpeechLMModule

_MEMORY = 0.99  # of the running mean of the logarithm of the gradient norm
_WARM_UP = 20  # steps before a spike can be distinguished from a start
_STATE = {"skipped", "rollbacks", "doubt", "_in_a_row", "_returned_to", "_mean_log_norm", "_seen"}


class StepGuard(Callback):
    """Skips steps whose gradient norm is not finite, or a spike; after several in a row goes back to a good checkpoint.

    Going back restores weights and moments, not the data position: the rows that did it are not met again. DeepSpeed
    leaves out what is not finite, but updates before a spike can be seen: such a step goes back immediately.

    From a bad step until the next good one the state is in `doubt`: what is saved meanwhile takes no good checkpoint's
    place. Where no step is good after going back, that checkpoint is set apart, and the one before it is next.

    Args:
        settings: how many, how high.
        engine: that the model trains under.
        writer: of the stage's checkpoints.
        folder: each rank writes `bad_steps.rank-<r>.jsonl` there: step, reason, and the rows of its batches.

    Raises:
        UserError: it goes on after `settings.rollbacks` returns, or there is no good checkpoint to return to.
    """

    doubt: str | None = None
    """Why the present state may be bad: what was wrong with the last step, or with what it was saved as."""

    def __init__(self, settings: GuardConfig, engine: Engine, writer: CheckpointWriter, folder: Path) -> None:
        self.settings, self.engine, self.writer, self.folder = settings, engine, writer, folder
        self.skipped = self.rollbacks = 0
        self._in_a_row = 0
        self._returned_to: int | None = None  # step of a checkpoint after which no step has been good yet
        self._mean_log_norm, self._seen = 0.0, 0
        self._window: list[tuple[list[list[str]], torch.Tensor]] = []

    def skip_reason(self, norm: float) -> str | None:
        """Why a step with this gradient norm is bad, or None."""
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        limit = self.settings.spike_factor
        if limit is not None and self._seen >= _WARM_UP and norm > limit * math.exp(self._mean_log_norm):
            return f"the gradient norm {norm:.3g} is over {limit:g} times the usual {math.exp(self._mean_log_norm):.3g}"
        return None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        assert isinstance(module, SpeechLMModule)
        self._window.append((batch.names, module.last_loss))
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        norm = self.engine.norm_of_last_step(module)
        reason = None if norm is None else self.skip_reason(float(norm))
        if reason is None:
            self._in_a_row, self._returned_to, self.doubt = 0, None, None
            if norm is not None and float(norm) > 0:
                weight = max(1 - _MEMORY, 1 / (self._seen + 1))
                self._mean_log_norm += weight * (math.log(float(norm)) - self._mean_log_norm)
                self._seen += 1
        else:
            self._bad_step(trainer, module, reason)
        self._window.clear()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: getattr(self, name) for name in _STATE}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Take over `state()` of a checkpoint."""
        for name in _STATE & state.keys():
            setattr(self, name, state[name])

    def roll_back(self, trainer: L.Trainer, module: SpeechLMModule, reason: str) -> None:
        """Restore weights and moments of the last good checkpoint; the data position is kept. Collective.

        Raises:
            UserError: there is none, or going back has not helped before.
        """
        self.writer.finish()
        self.writer.spoilt = None
        self.doubt = reason
        allowed = self.rollbacks < self.settings.rollbacks
        if trainer.is_global_zero:
            self._move_aside(reason, with_doubtful=not allowed)
        if allowed:
            back_to = restore_newest(trainer, self.writer.folder, GOOD, model=module.speech_lm, engine=self.engine)
        else:
            back_to = newest_usable(trainer, self.writer.folder, GOOD)
        if back_to is None or not allowed:
            again = "there is no good checkpoint to go back to; force=true starts over"
            if back_to is not None:
                again = f"rerunning the same command resumes from {back_to.path.name}, the last good checkpoint"
            raise UserError(
                f"stage '{module.stage.name}' stops at step {trainer.global_step}: {reason}, {self._in_a_row} bad steps in a "
                f"row, and {self.rollbacks} returns to a checkpoint did not help; the rows, first those of rank 0: "
                f"{bunch(self._suspects())}; all are in {self.folder}/bad_steps.*.jsonl; lower stage.learning_rate, or "
                f"look at the rows; {again}"
            )
        self.rollbacks += 1
        self._in_a_row, self._returned_to = 0, back_to.step
        if trainer.is_global_zero:
            print(
                f"{reason}: restored weights and moments of {back_to.path.name}; the data position is kept",
                flush=True,
            )

    def _move_aside(self, reason: str, with_doubtful: bool) -> None:
        """Take checkpoints that did not help from those to go back to, and doubtful ones from those to resume from."""
        reason = f"no step was good after it: {reason}"
        if self._returned_to is not None:
            for path in checkpoints(self.writer.folder, GOOD):
                if step_of(path) >= self._returned_to:
                    move_aside(path, reason)
        if with_doubtful:
            for path in checkpoints(self.writer.folder, DOUBT):
                move_aside(path, reason)

    def _bad_step(self, trainer: L.Trainer, module: SpeechLMModule, reason: str) -> None:
        self.skipped += 1
        self._in_a_row += 1
        self.doubt = reason
        rows = self._suspects()
        record = {"format": 1, "step": trainer.global_step, "reason": reason, "rows": rows}
        with (self.folder / f"bad_steps.rank-{trainer.global_rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        left_out = self.engine.left_out_last_step()
        if trainer.is_global_zero:
            done = "is left out" if left_out else "has changed the weights"
            print(f"step {trainer.global_step} {done}: {reason}; rows of rank 0: {bunch(rows)}", flush=True)
        if self._in_a_row >= self.settings.bad_steps or not left_out:
            self.roll_back(trainer, module, reason)

    def _suspects(self) -> list[str]:
        """Documents of the batches whose own loss is not finite; of all batches of the step where none is."""
        spoilt = [names for names, loss in self._window if not bool(torch.isfinite(loss))]
        return [name for names in spoilt or [names for names, _ in self._window] for row in names for name in row]
