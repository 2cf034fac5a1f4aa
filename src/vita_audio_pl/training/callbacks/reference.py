"""Before a stage on pairs of answers: how likely the model that it starts from finds each of them, computed once and kept."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from vita_audio_pl.data.datamodule import SpeechDataModule
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import read_sealed, write_sealed
from vita_audio_pl.training.step.module import SpeechLMModule

_EVERY = 10.0  # seconds between two lines of progress


class Reference(Callback):
    """Gives the data module the reference's log-probabilities of both answers of every pair.

    They are kept in `file`, sealed, with what they follow from, so that a stage which is resumed goes on from the same
    numbers and no second model is in memory while it trains. Must stand before `Resume`: the module still has the weights
    that the stage starts from.

    Args:
        facts: what decides the numbers, beside the sources: the weights and how answers are rendered.
    """

    def __init__(self, file: Path, facts: Mapping[str, Any]) -> None:
        self.file, self.facts = file, facts

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SpeechLMModule)
        data: SpeechDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by `fit`, not declared
        sources = [*data.sources, *data.validation_sources.values()]
        facts = {
            "format": 1,
            **self.facts,
            "precision": module.engine.settings.precision,  # Lightning's own is another where the engine casts
            "sources": {source.name: [source.manifest.index_crc, len(source)] for source in sources},
        }
        # what goes wrong on rank 0 is raised on all: the others would wait for it
        found = trainer.strategy.broadcast(self._kept(facts) if trainer.is_global_zero else None)
        if found is None:
            found = self._computed(trainer, module, data)
            failure = trainer.strategy.broadcast(self._keep(facts, found) if trainer.is_global_zero else None)
            if failure is not None:
                raise failure
        if isinstance(found, OSError):
            raise found
        data.reference = found

    def _keep(self, facts: Mapping[str, Any], found: Mapping[str, np.ndarray]) -> OSError | None:
        """Write the file; returns what went wrong."""
        numbers = {
            name: [[value if np.isfinite(value) else None for value in pair] for pair in pairs.tolist()]
            for name, pairs in found.items()
        }
        try:
            write_sealed(self.file, {**facts, "log_probabilities": numbers})
        except OSError as error:
            return error
        return None

    def _kept(self, facts: Mapping[str, Any]) -> dict[str, np.ndarray] | OSError | None:
        """What is in the file, or why it cannot be read; None where there is none, or it is of other weights or pairs."""
        try:
            kept = read_sealed(self.file)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error
        except UserError as error:
            print(f"{error}; the reference's log-probabilities are computed again", flush=True)
            return None
        numbers = kept.pop("log_probabilities", {})
        if kept != facts:
            return None
        return {name: np.array(pairs, np.float64).reshape(-1, 2) for name, pairs in numbers.items()}

    def _computed(self, trainer: L.Trainer, module: SpeechLMModule, data: SpeechDataModule) -> dict[str, np.ndarray]:
        """Log-probabilities `(samples, 2)` by source, on all ranks; NaN for what was left out. Collective."""
        module.eval()
        started = told = time.monotonic()
        done, found = 0, {}
        for source, requests, batches in data.every_sample():
            # the last column says which rank has read the pair: to be 1 in the sum over ranks
            values = found[source.name] = torch.zeros(len(source), 3, dtype=torch.float64, device=module.device)
            for request, batch in zip(requests, batches, strict=True):
                with torch.no_grad(), trainer.precision_plugin.val_step_context():
                    pairs = module.speech_lm(batch.to(module.device), module.objective).pairs
                samples = np.concatenate([row.sample for row in request.rows]).astype(np.int64)
                values[torch.from_numpy(samples), :2], values[torch.from_numpy(samples), 2] = pairs[:, :2], 1.0
                done += len(samples)
                if trainer.is_global_zero and time.monotonic() > told + _EVERY:
                    told = time.monotonic()
                    print(
                        f"the reference's log-probabilities: {done} pairs on this rank, {told - started:.0f} s",
                        flush=True,
                    )
        for values in found.values():
            if trainer.world_size > 1:  # every pair was read by one rank
                torch.distributed.all_reduce(values)
            values[values[:, 2] == 0] = torch.nan
        module.train()
        module.engine.reshard(module.speech_lm)  # whole parameters are read next
        if trainer.is_global_zero:
            print(
                f"the reference's log-probabilities of {sum(map(len, found.values()))} pairs are in {self.file} "
                f"({time.monotonic() - started:.0f} s)",
                flush=True,
            )
        return {name: values[:, :2].cpu().numpy() for name, values in found.items()}
