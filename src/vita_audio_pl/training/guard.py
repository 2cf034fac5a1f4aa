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
from vita_audio_pl.training.checkpoint_restore import restore_tensors
from vita_audio_pl.training.checkpoint_writer import CheckpointWriter
from vita_audio_pl.training.checkpoints import latest_for_all, step_of
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.freezing import bunch
from vita_audio_pl.training.module import SpeechLMModule
from vita_audio_pl.training.settings import GuardConfig

_MEMORY = 0.99  # of the running mean of the logarithm of the gradient norm
_WARM_UP = 20  # steps before a spike can be told from a start


class StepGuard(Callback):
    """Skips steps whose gradient norm is not finite, or a spike; after several in a row goes back to a checkpoint.

    Going back restores weights and moments, not the data position: the rows that did it are not met again. DeepSpeed
    leaves out what is not finite, but updates before a spike can be seen: such a step goes back immediately.

    Args:
        settings: how many, how high.
        engine: that the model trains under.
        writer: of the stage's checkpoints.
        folder: each rank writes `bad_steps.rank-<r>.jsonl` there: step, reason, and the rows of its batches.

    Raises:
        UserError: it goes on after `settings.rollbacks` returns, or there is no checkpoint to return to.
    """

    def __init__(self, settings: GuardConfig, engine: Engine, writer: CheckpointWriter, folder: Path) -> None:
        self.settings, self.engine, self.writer, self.folder = settings, engine, writer, folder
        self.skipped = self.rollbacks = 0
        self._in_a_row = 0
        self._mean_log_norm, self._seen = 0.0, 0
        self._window: list[tuple[list[list[str]], torch.Tensor]] = []

    def verdict(self, norm: float) -> str | None:
        """Why a step with this gradient norm is bad, or None."""
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        limit = self.settings.spike_factor
        if limit is not None and self._seen >= _WARM_UP and norm > limit * math.exp(self._mean_log_norm):
            return f"the gradient norm {norm:.3g} is over {limit:g} times the usual {math.exp(self._mean_log_norm):.3g}"
        return None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: SpeechLMModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        self._window.append((batch.names, module.last_loss))
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        norm = self.engine.norm_of_last_step(module)
        reason = None if norm is None else self.verdict(float(norm))
        if reason is None:
            self._in_a_row = 0
            if norm is not None and float(norm) > 0:
                weight = max(1 - _MEMORY, 1 / (self._seen + 1))
                self._mean_log_norm += weight * (math.log(float(norm)) - self._mean_log_norm)
                self._seen += 1
        else:
            self._bad_step(trainer, module, reason)
        self._window.clear()

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        names = ("skipped", "rollbacks", "_in_a_row", "_mean_log_norm", "_seen")
        return {name: getattr(self, name) for name in names}

    def resume_from(self, state: dict[str, float]) -> None:
        """Take over `state()` of a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)

    def _bad_step(self, trainer: L.Trainer, module: SpeechLMModule, reason: str) -> None:
        self.skipped += 1
        self._in_a_row += 1
        rows = self._suspects()
        record = {"step": trainer.global_step, "reason": reason, "rows": rows}
        with (self.folder / f"bad_steps.rank-{trainer.global_rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        left_out = self.engine.left_out_last_step()
        if trainer.is_global_zero:
            done = "is left out" if left_out else "has changed the weights"
            print(f"step {trainer.global_step} {done}: {reason}; rows of rank 0: {bunch(rows)}", flush=True)
        if self._in_a_row < self.settings.bad_steps and left_out:
            return
        self.writer.finish()
        back_to = latest_for_all(trainer, self.writer.folder)
        if self.rollbacks >= self.settings.rollbacks or back_to is None:
            raise UserError(
                f"stage '{module.stage.name}' stops at step {trainer.global_step}: {reason}, {self._in_a_row} steps in a row, "
                f"{self.rollbacks} returns to a checkpoint did not help; the rows, first those of rank 0: {bunch(rows)}; all "
                f"are in {self.folder}/bad_steps.*.jsonl"
            )
        self.rollbacks += 1
        self._in_a_row = 0
        restore_tensors(back_to, trainer, module.speech_lm, self.engine, step_of(back_to))
        if trainer.is_global_zero:
            print(f"weights and moments are those of {back_to.name} again; the data goes on", flush=True)

    def _suspects(self) -> list[str]:
        """Documents of the batches whose own loss is not finite; of all batches of the step where none is."""
        spoilt = [names for names, loss in self._window if not bool(torch.isfinite(loss))]
        return [name for names in spoilt or [names for names, _ in self._window] for row in names for name in row]
