"""Bad steps: skipped, counted and logged with their samples, and undone if they could not be skipped."""

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

_MEMORY = 0.99  # decay of the running mean of the log gradient norm
_WARM_UP = 20  # steps before a spike can be told from the start of training
_STATE = {"skipped", "rollbacks", "doubt", "_in_a_row", "_returned_to", "_mean_log_norm", "_seen"}


class StepGuard(Callback):
    """Skips steps whose gradient norm is not finite, or a spike; after several in a row rolls back to a checkpoint.

    A rollback restores weights and moments but not the data position, so the same rows are not met again. DeepSpeed
    skips non-finite steps itself, but updates before a spike is known: such a step is rolled back immediately.

    From a bad step until the next good one the state is in `doubt`: checkpoints saved meanwhile do not replace a good
    one. If no step after a rollback is good, that checkpoint is set aside, and the next rollback uses the one before
    it.

    Args:
        settings: thresholds and limits.
        engine: engine of the run.
        writer: writer of the stage's checkpoints.
        folder: each rank writes `bad_steps.rank-<r>.jsonl` there: step, reason, and the documents of its batches.

    Raises:
        UserError: still bad after `settings.rollbacks` rollbacks, or no good checkpoint to roll back to.
    """

    doubt: str | None = None
    """Why the present state may be bad: the problem of the last step, or of the checkpoint that was restored."""

    def __init__(self, settings: GuardConfig, engine: Engine, writer: CheckpointWriter, folder: Path) -> None:
        self.settings, self.engine, self.writer, self.folder = settings, engine, writer, folder
        self.skipped = self.rollbacks = 0
        self._in_a_row = 0
        self._returned_to: int | None = None  # step of a rollback checkpoint after which no step has been good yet
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
        """State for a checkpoint."""
        return {name: getattr(self, name) for name in _STATE}

    def resume_from(self, state: dict[str, Any]) -> None:
        """Restore the `state()` of a checkpoint."""
        for name in _STATE & state.keys():
            setattr(self, name, state[name])

    def roll_back(self, trainer: L.Trainer, module: SpeechLMModule, reason: str) -> None:
        """Restore weights and moments of the last good checkpoint, but not the data position. Collective.

        Raises:
            UserError: there is none, or rollbacks have not helped.
        """
        self.writer.finish()
        self.writer.went_back()
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
        """Mark checkpoints that did not help as bad for rollbacks, and doubtful ones as bad for resuming."""
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
        """Documents of the batches whose own loss is not finite; if there are none, of all batches of the step."""
        spoilt = [names for names, loss in self._window if not bool(torch.isfinite(loss))]
        return [name for names in spoilt or [names for names, _ in self._window] for row in names for name in row]
