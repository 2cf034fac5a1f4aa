"""The LightningDataModule: prepared sources in, packed batches out; resumable at any batch on any number of ranks."""

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed

from vita_audio_pl.child_processes import attach_worker, worker_context
from vita_audio_pl.config.fields import check_settings
from vita_audio_pl.data.held_out import HeldOut, choose_held_out
from vita_audio_pl.data.mixture import Mixture, load_mixture, without_missing
from vita_audio_pl.data.options import DataOptions
from vita_audio_pl.data.plan import Change, Plan, PlannedSource, pack_once
from vita_audio_pl.data.prepared import Manifest, NotPrepared, PreparedSource, open_sources
from vita_audio_pl.data.rows import EMPTY_ROW, BatchRequest, FrontEnd, Parcel, PlannedRow, Reading, RowBuilder
from vita_audio_pl.data.schedule import Geometry, Parcels, Position, Schedule
from vita_audio_pl.data.staging import is_prepared, local_folder, shards_place
from vita_audio_pl.data.survey import Survey, survey
from vita_audio_pl.errors import UserError
from vita_audio_pl.packed import PackedBatch
from vita_audio_pl.text import Renderer, RenderOptions, TextTokenizer, Vocabulary

log = logging.getLogger(__name__)

_TOKENS_PER_PARCEL, _MOST_PER_PARCEL = 32_768, 16  # tokens in the batches that a worker sends at a time
_AUDIO_BLOCK = 256  # samples whose audio is read sequentially
_FEW_BROKEN = 10  # this many broken samples of a source never stop a run


class SpeechDataModule(lightning.LightningDataModule):
    """Endless training rows and a fixed set of validation rows.

    Call `consumed(batch)` after training on a batch: `state_dict` then holds the position after it, tens of bytes that
    are equal on all ranks, and a run that loads them resumes with the very next row.

    Args:
        options: which data, and how to read it.
        vocabulary: vocabulary of the model.
        tokenizer: text tokenizer; must be the one that the shards were written with.
        renderer_options: interval ratio, decoding pattern, weights, lead-in, corruption.
        rows_per_batch: rows per batch and rank.
        row_length: tokens in a row.
        accumulate: batches per optimiser step.
        seed: seed of the order and of the prompt corruption.
        rows_per_step: rows per step over all ranks, if their batches hold more; the last ones are then empty.
        front_end: computes an encoder's features; required by a vocabulary for continuous input. The order then keeps
            blocks of samples together, so that their audio is read sequentially.

    Raises:
        UserError: the data does not fit the model; see `open_sources`, `load_mixture`, `Plan`.
    """

    def __init__(
        self,
        options: DataOptions,
        vocabulary: Vocabulary,
        tokenizer: TextTokenizer,
        renderer_options: RenderOptions,
        *,
        rows_per_batch: int,
        row_length: int,
        accumulate: int,
        seed: int,
        rows_per_step: int | None = None,
        front_end: FrontEnd | None = None,
    ):
        super().__init__()
        check_settings(options, "data.")
        if vocabulary.continuous_input != (front_end is not None):
            raise ValueError("a front end goes with a vocabulary for continuous input, and only with one")
        self._shards = shards_place(options)
        self._front_end = front_end
        self.options, self.row_length, self.seed = options, row_length, seed
        self._rows_per_batch, self._accumulate, self._rows_per_step = rows_per_batch, accumulate, rows_per_step
        self._vocabulary, self._tokenizer = vocabulary, tokenizer
        self.renderer = Renderer(vocabulary, tokenizer, renderer_options)
        self.mixture = load_mixture(options.mixture)
        if options.temperature is not None:
            self.mixture = replace(self.mixture, temperature=options.temperature)
        if options.skip_missing:
            self.mixture = without_missing(self.mixture, self._is_prepared)
        self.sources = self._open([share.source for share in self.mixture.shares])
        # What the order excludes is fixed for the duration of a run: samples that are quarantined later keep their
        # places, empty
        self._quarantined = {source.name: sorted(source.quarantined) for source in self.sources if source.quarantined}
        self._surveys = [self._survey(source, self._quarantined.get(source.name, ())) for source in self.sources]
        self._position: Position | None = None
        self._schedule: Schedule | None = None
        self.broken: dict[str, dict[int, str]] = {}  # source -> sample -> reason, found while reading
        self.reference: dict[str, np.ndarray] = {}  # source of pairs -> `(samples, 2)`, see `PackedBatch.reference`
        self._seen: Counter[str] = Counter()

    def _open(self, names: Sequence[str]) -> list[PreparedSource]:
        hears = self._vocabulary.continuous_input
        folders = [local_folder(self._shards, name, self.options.cache, hears) for name in names]
        return open_sources(folders, self._tokenizer.fingerprint, self._vocabulary.n_codes, hears)

    def _is_prepared(self, name: str) -> bool:
        try:
            Manifest.load(local_folder(self._shards, name, self.options.cache))
        except NotPrepared:
            return False
        return True

    def _survey(self, source: PreparedSource, quarantined: Collection[int] | None = None) -> Survey:
        rule, options, continuous = self.renderer.length_rule, self.renderer.options, self._vocabulary.continuous_input
        return survey(source, rule, options, continuous, self.row_length, self.options.overlong, quarantined)

    @cached_property
    def plan(self) -> Plan:
        """The order of the training rows."""
        planned = [
            PlannedSource(source.name, surveyed.tokens, ratio, share.num, _AUDIO_BLOCK if self._front_end else 1)
            for source, surveyed, share, ratio in zip(
                self.sources, self._surveys, self.mixture.shares, self._ratios(self.mixture), strict=True
            )
        ]
        return Plan(planned, self.row_length, self.seed, self.options.window)

    def _ratios(self, mixture: Mixture) -> list[float]:
        used = np.array([s.used(len(source)) for s, source in zip(mixture.shares, self.sources, strict=True)])
        tokens = used * [surveyed.tokens.sum(dtype=np.int64) for surveyed in self._surveys]
        hours = used * [source.manifest.seconds / 3600 for source in self.sources]
        return [float(ratio) for ratio in mixture.ratios(tokens, hours)]

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of everything that determines the order, except the ratios, which may change within a run."""
        rule = self.renderer.length_rule
        facts = {
            "sources": [
                (source.name, source.manifest.index_crc, share.num, self._quarantined.get(source.name, []))
                for source, share in zip(self.sources, self.mixture.shares, strict=True)
            ],
            "rows": (self.row_length, self.options.window, self.options.overlong, self.seed),
            "lengths": (rule.ratio and rule.ratio.runs, rule.n_lead_in, rule.around, self._vocabulary.continuous_input),
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    @property
    def position(self) -> Position:
        """The position after the last consumed batch, with all changes of the mixture."""
        position = self._position or Position(self.fingerprint, self.plan.phases[0].ratios)
        return replace(position, changes=tuple(self.plan.changes))

    def consumed(self, batch: PackedBatch) -> None:
        """Record that training has used `batch`; the next checkpoint continues after it."""
        self._position = Position.from_dict(batch.position)

    def state_dict(self) -> dict[str, Any]:
        return {**self.position.to_dict(), "quarantined": self._quarantined}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "quarantined" in state_dict:  # older versions did not say
            self._leave_out(state_dict["quarantined"])
        self.seek(state_dict)

    def _leave_out(self, quarantined: Mapping[str, Sequence[int]]) -> None:
        """Plan as when the run began, whatever was quarantined or released since."""
        try:
            wanted = {name: sorted(int(sample) for sample in samples) for name, samples in quarantined.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"the data position in the checkpoint cannot be read ({error})") from error
        for number, source in enumerate(self.sources):
            samples = wanted.get(source.name, [])
            if samples != self._quarantined.get(source.name, []):
                if samples and not 0 <= samples[0] <= samples[-1] < len(source):
                    raise UserError(f"the checkpoint's data position is of another source than '{source.name}' is now")
                self._surveys[number] = self._survey(source, samples)
        self._quarantined = wanted
        for name in ("plan", "fingerprint"):
            self.__dict__.pop(name, None)

    def seek(self, position: dict[str, Any]) -> None:
        """Go to a batch's `position`: the next training batch is the one after it.

        Raises:
            UserError: the position belongs to other data, or another seed, ratio or row length; or the mixture has
                other shares and `adopt_changes` is off.
        """
        place = Position.from_dict(position)
        if place.plan != self.fingerprint:
            raise UserError(
                f"the checkpoint's data position is of another plan ({place.plan}) than this run's "
                f"({self.fingerprint}): sources, seed, row length, interval ratio or lead-in have changed; "
                "restore them, or start a new run from the model"
            )
        wanted = tuple(self._ratios(self.mixture))
        planned = [replace(s, ratio=ratio) for s, ratio in zip(self.plan.sources, place.ratios, strict=True)]
        self.__dict__["plan"] = Plan(planned, self.row_length, self.seed, self.options.window, place.changes)
        self._position, self._schedule = place, None
        if wanted != self.plan.phases[-1].ratios:
            if not self.options.adopt_changes:
                raise UserError(
                    f"the checkpoint was trained on other shares than the mixture '{self.mixture.name}' gives; restore "
                    "the mixture, or set data.adopt_changes=true to use the new shares from the next window on"
                )
            self._change(wanted)

    def change_mixture(self, mixture: Mixture) -> None:
        """Change the shares of the same sources from the next window on; stored in the state.

        Raises:
            UserError: the mixture has other sources.
        """
        if [(s.source, s.num) for s in mixture.shares] != [(s.source, s.num) for s in self.mixture.shares]:
            raise UserError(
                f"the mixture '{mixture.name}' names other sources, in another order or with another num than "
                f"'{self.mixture.name}'; a running order can change only the shares"
            )
        self._change(tuple(self._ratios(mixture)))
        self.mixture = mixture

    def _change(self, ratios: tuple[float, ...]) -> None:
        ahead = self._schedule.planned if self._schedule else self.position
        place = ahead.place
        if place.phase != len(self.plan.changes):
            raise UserError("the shares were changed already in this window; change them again in the next")
        self.plan.change(Change(place.epoch, place.window, ratios))

    @property
    def geometry(self) -> Geometry:
        """How this run divides a step into batches."""
        ranks, rank = 1, 0
        if self.trainer is not None:
            ranks, rank = self.trainer.world_size, self.trainer.global_rank
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        return Geometry(self._rows_per_batch, self._accumulate, ranks, rank, self._rows_per_step)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch of the mixture, rounded up."""
        return self.steps_of(1.0)

    def steps_of(self, epochs: float) -> int:
        """Optimiser steps in `epochs` epochs of the initial mixture, rounded up."""
        return max(1, math.ceil(epochs * self.plan.rows_per_epoch / self.geometry.rows_per_step))

    @property
    def source_names(self) -> tuple[str, ...]:
        """Training sources by their number in `PackedBatch.sources`."""
        return tuple(source.name for source in self.sources)

    def train_dataloader(self) -> "Batches":
        """Endless batches of this rank, from the position on."""
        self._schedule = Schedule(self.plan, self.position, self.geometry, [s.weight for s in self._surveys])
        return Batches(self._loader(dict(enumerate(self.sources)), self._schedule), self)

    def val_dataloader(self) -> "Batches":
        """The same held-out rows in every run, source by source; numbered like the training sources."""
        return Batches(self._loader(self.validation_sources, self._validation), self, len(self._validation))

    @property
    def validation_batches(self) -> int:
        """Held-out batches per rank; 0 if no held-out source is prepared."""
        return len(self._validation)

    @cached_property
    def validation_sources(self) -> dict[int, PreparedSource]:
        """Number of a training source -> its held-out source."""
        names = {n: f"{source.name}.{self.options.validation}" for n, source in enumerate(self.sources)}
        there = {n: name for n, name in names.items() if is_prepared(self._shards, name)}
        return dict(zip(there, self._open(list(there.values())), strict=True))

    def held_out(self, tasks: Sequence[str], per_task: int, serves: Callable[[HeldOut], bool]) -> list[HeldOut]:
        """Held-out prompts, the same in every run; see `choose_held_out`."""
        reader = RowBuilder(self.validation_sources, self.renderer, self.row_length, self.seed, self._front_end)
        return choose_held_out(self.validation_sources, reader.read, tasks, per_task, serves)

    @cached_property
    def _validation(self) -> list[BatchRequest]:
        return self._once(self.validation_sources, self.options.validation_rows)

    def _once(self, sources: Mapping[int, PreparedSource], most_rows: int | None) -> list[BatchRequest]:
        """This rank's batches of about so many rows of each source, a fixed choice; None is all that is not left out."""
        geometry = self.geometry
        requests: list[BatchRequest] = []
        for number, source in sources.items():
            surveyed = self._survey(source)
            planned = PlannedSource(source.name, surveyed.tokens, 1.0)
            window = pack_once(planned, self.row_length, len(source) if most_rows is None else most_rows)
            spans = zip(window.starts[:-1], window.starts[1:], strict=True)
            rows = [PlannedRow(window.source[a:b] + number, window.sample[a:b], r) for r, (a, b) in enumerate(spans)]
            for first in range(0, len(rows), geometry.rows_at_once):
                batch = rows[first : first + geometry.rows_at_once]
                divisor = sum(float(surveyed.weight[row.sample].sum(dtype="f8")) for row in batch)
                mine = batch[geometry.rank :: geometry.ranks]
                missing = -(-len(batch) // geometry.ranks) - len(mine)  # every rank runs as many rows as any other
                requests.append(BatchRequest([*mine, *[EMPTY_ROW] * missing], divisor, {}))
        return requests

    def every_sample(self) -> Iterator[tuple[PreparedSource, Sequence[BatchRequest], "Batches"]]:
        """This rank's batches of every sample that is not left out, source by source, held-out ones too, with their requests."""
        for number, source in [*enumerate(self.sources), *self.validation_sources.items()]:
            requests = self._once({number: source}, None)
            yield source, requests, Batches(self._loader({number: source}, requests), self, len(requests))

    def _loader(
        self, sources: dict[int, PreparedSource], requests: Iterable[BatchRequest]
    ) -> "torch.utils.data.DataLoader[Parcel]":
        workers = self.options.workers
        batches = max(1, min(_MOST_PER_PARCEL, _TOKENS_PER_PARCEL // (self._rows_per_batch * self.row_length)))
        return torch.utils.data.DataLoader(
            RowBuilder(sources, self.renderer, self.row_length, self.seed, self._front_end),
            batch_size=None,
            sampler=Parcels(requests, batches),
            num_workers=workers,
            worker_init_fn=partial(attach_worker, os.getpid()),
            multiprocessing_context=worker_context() if workers else None,
            prefetch_factor=self.options.prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def note(self, reading: Reading, sources: Mapping[int, PreparedSource]) -> None:
        """Count the samples read and report those that could not be.

        Raises:
            UserError: more of a source is broken than `max_broken` allows.
        """
        for number, count in reading.seen.items():
            self._seen[sources[number].name] += count
        for sample in reading.broken:
            name = sources[sample.source].name
            if sample.sample in sources[sample.source].quarantined:
                continue  # quarantined since this run began: its place stays empty, and it was reported before
            known = self.broken.setdefault(name, {})
            if sample.sample not in known:
                log.warning("left out: %s", sample.reason)
            known[sample.sample] = sample.reason
            if len(known) > max(_FEW_BROKEN, self.options.max_broken * self._seen[name]):
                raise UserError(
                    f"{len(known)} of the {self._seen[name]} samples read of '{name}' are broken, more than "
                    f"data.max_broken={self.options.max_broken} allows; the last: {sample.reason}; run "
                    f"python -m vita_audio_pl.data lint source={name} quarantine=true, or prepare the source again"
                )

    def describe(self) -> dict[str, Any]:
        """The training data, for the run's manifest; hours per epoch include samples that are left out."""
        phase = self.plan.phases[-1]
        return {
            "plan": self.fingerprint,
            "mixture": self.mixture.name,
            "row_length": self.row_length,
            "seed": self.seed,
            "sources": {
                source.name: {
                    "share": round(part, 6),
                    "ratio": ratio,
                    "hours": round(ratio * share.used(len(source)) * source.manifest.seconds / 3600, 4),
                    "samples": len(source),
                    "tokens": int(surveyed.tokens.sum(dtype="i8")),
                    "left_out": surveyed.counts,
                    "index_crc": source.manifest.index_crc,
                    "tokenizer": source.manifest.tokenizer,
                    "codec": source.manifest.codec,
                }
                for source, surveyed, share, part, ratio in zip(
                    self.sources, self._surveys, self.mixture.shares, phase.shares, phase.ratios, strict=True
                )
            },
        }


class Batches:
    """The batches of a DataLoader; unreadable samples are reported to the data module in the training process."""

    def __init__(
        self,
        loader: "torch.utils.data.DataLoader[Parcel]",
        owner: SpeechDataModule,
        length: int | None = None,
    ):
        self._loader, self._owner, self._length = loader, owner, length

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("training batches have no end")
        return self._length

    def __iter__(self) -> Iterator[PackedBatch]:
        builder: RowBuilder = self._loader.dataset  # type: ignore[assignment]  # the loader is made of one
        options = self._owner.renderer.options
        weighted = (options.text_weight, options.audio_weight) != (1, 1)
        for parcel in self._loader:
            self._owner.note(parcel.reading, builder.sources)
            for request, batch in zip(parcel.requests, parcel.unpack(weighted), strict=True):
                yield replace(batch, reference=request.reference(builder.sources, self._owner.reference))
