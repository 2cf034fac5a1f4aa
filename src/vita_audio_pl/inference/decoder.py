"""The decoding loop: rounds of one backbone pass for all sequences, followed by the heads that their patterns need.

A round begins with a backbone pass over every token that the backbone has not read (a prompt, or what the heads wrote),
which synchronises sequences that joined at different times; head k runs once for all that are at their k-th draft
(VITA-Audio, arXiv 2505.03739, section 3.2; drafts are verified as in speculative decoding).
"""

import copy
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.cache import Cache
from vita_audio_pl.inference.checks import token_ids
from vita_audio_pl.inference.drafting import Drafting
from vita_audio_pl.inference.graphs import GraphedPasses
from vita_audio_pl.inference.prefix_reuse import prompt_audio, reuse_prefix
from vita_audio_pl.inference.rounds import together
from vita_audio_pl.inference.rows import Rows, Span
from vita_audio_pl.inference.runtime import AudioStates, Runtime
from vita_audio_pl.inference.scoring import Scorer
from vita_audio_pl.inference.screening import NOT_FINITE
from vita_audio_pl.inference.sequence import DecodedSequence, Options
from vita_audio_pl.inference.shapes import recurring_shapes
from vita_audio_pl.inference.verify import agreeing, speculative

PREFILL_CHUNK = 512
"""Tokens of a prompt that one round reads, so that a long prompt neither stalls the others nor needs much memory."""


class Decoder:
    """Decodes up to `slots` sequences at a time and owns their caches. They join with `open`, leave with `close`.

    Thread-safe: each call holds a lock.

    Args:
        runtime: the model.
        slots: sequences decoded at a time.
        capacity: tokens per sequence, prompt included.
        n_heads: heads that the patterns may use; all by default.
        graphs: replay passes as CUDA graphs; default: on a GPU. Opening the first sequence of a pattern takes about a
            second for the capture, so that no answer is interrupted by it.
        clock: time source for `seconds`.

    Attributes:
        cache: keys, values and hidden states.
        seconds: time spent in `prefill` (rounds in which all sequences read prompts), `backbone` and `heads`.
        errors: failed sequences and their errors.

    Raises:
        UserError: invalid sizes, or not enough memory.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        slots: int = 1,
        capacity: int,
        n_heads: int | None = None,
        graphs: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if slots < 1 or capacity < 2:
            raise UserError(
                f"a decoder for {slots} sequences of {capacity} tokens is not possible; use at least 1 and 2"
            )
        if capacity > runtime.max_positions:
            raise UserError(
                f"{capacity} tokens (prompt and answer) exceed the model's {runtime.max_positions} positions; "
                "shorten the prompt or lower max_new_tokens"
            )
        self.runtime = runtime
        self.n_heads = runtime.n_heads if n_heads is None else min(n_heads, runtime.n_heads)
        self.cache: Cache = runtime.new_cache(
            slots=slots, capacity=capacity, n_heads=self.n_heads, window=2 * PREFILL_CHUNK
        )
        self.scorer = Scorer(runtime)
        self._graphed = GraphedPasses(runtime, self.cache) if _chosen(graphs, runtime.device) else None
        self._passes: Runtime | GraphedPasses = self._graphed or runtime
        self.seconds: dict[str, float] = defaultdict(float)
        self.errors: dict[DecodedSequence, UserError] = {}
        self._sequences: list[DecodedSequence | None] = [None] * slots
        self._resting: dict[int, DecodedSequence] = {}  # by slot, the one that has rested longest first
        self._rows: Rows | None = None  # of the last pass
        self._lock = threading.RLock()
        self._clock = clock

    @property
    def free_slots(self) -> int:
        """Number of sequences that could join now; slots of resting sequences count as free."""
        return self._sequences.count(None)

    def open(
        self,
        prompt: Sequence[int],
        options: Options,
        clips: Sequence[Tensor] = (),
        after: DecodedSequence | None = None,
    ) -> DecodedSequence:
        """Add a sequence; decoding starts with the next round.

        Args:
            clips: features of the prompt's audio, for models with an audio encoder.
            after: a resting sequence to continue from: the prompt's common prefix with it is not read again.
                If its slot has been reassigned meanwhile, the whole prompt is read.

        Raises:
            UserError: no free slot; an empty prompt; an invalid token id in prompt, stop ids or constraint; more tokens
                than the cache holds; or clips that are not features or do not match the prompt's placeholders. The
                sequences that are being decoded are not affected.
        """
        with self._lock:
            return self._open(prompt, options, clips, after)

    def _open(
        self, prompt: Sequence[int], options: Options, clips: Sequence[Tensor], after: DecodedSequence | None
    ) -> DecodedSequence:
        if not self.free_slots:
            raise UserError(f"all {len(self._sequences)} sessions are taken; close one, or decode with more")
        capacity, vocabulary = self.cache.capacity, self.runtime.vocab_size
        prompt = token_ids(prompt, "the prompt", vocabulary)
        options.check_ids(vocabulary)
        if not prompt:
            raise UserError("the prompt is empty; give at least one token")
        if len(prompt) + options.max_new_tokens > capacity:
            raise UserError(
                f"a prompt of {len(prompt)} tokens and an answer of up to {options.max_new_tokens} do not fit into the "
                f"cache of {capacity} tokens; shorten the prompt, lower max_new_tokens, or give a larger cache"
            )
        if self._graphed is not None:
            verifies = options.verify != "none"
            self._graphed.prepare(recurring_shapes(options.pattern, self.n_heads, verifies, self.runtime.chained))
        resting = after is not None and self._resting.get(after.slot) is after
        audio = prompt_audio(self.runtime, prompt, clips, after if resting else None)
        slot = after.slot if after is not None and resting else self._take_slot()
        drafting = self._new_drafting() if options.verify != "none" and self.n_heads else None
        sequence = DecodedSequence(slot, prompt, options, self.n_heads, audio, drafting, self.runtime.chained)
        if after is not None and resting:
            del self._resting[slot]
            reuse_prefix(sequence, after, self.cache.window)
        self._sequences[slot] = sequence
        return sequence

    def _new_drafting(self) -> Drafting:
        return Drafting(self.runtime.costs, self.n_heads)

    def _take_slot(self) -> int:
        """An empty slot, or the slot of the sequence that has rested longest."""
        empty = [n for n, s in enumerate(self._sequences) if s is None and n not in self._resting]
        if empty:
            return empty[0]
        slot = next(iter(self._resting))
        if not self._resting.pop(slot).sound:
            self.cache.clear(slot)
        return slot

    def pause(self, sequence: DecodedSequence) -> None:
        """End a sequence where it is. Its slot counts as free but keeps its contents until it is reassigned."""
        with self._lock:
            if self._sequences[sequence.slot] is not sequence:
                return
            if sequence in self.errors:
                self.close(sequence)
                return
            self._sequences[sequence.slot] = None
            self._resting[sequence.slot] = sequence
            sequence.interrupt()

    def is_paused(self, sequence: DecodedSequence) -> bool:
        """Whether the cached rows of a resting sequence are still there."""
        return self._resting.get(sequence.slot) is sequence

    def copy(self, sequence: DecodedSequence) -> DecodedSequence | None:
        """A resting sequence with a copy of another one's caches; None if they are gone or no slot is empty."""
        with self._lock:
            empty = [n for n, s in enumerate(self._sequences) if s is None and n not in self._resting]
            if not empty or not self.is_paused(sequence):
                return None
            other = copy.copy(sequence)
            other.slot = empty[0]
            self.cache.copy_slot(sequence.slot, other.slot)
            self._resting[other.slot] = other
            return other

    def close(self, sequence: DecodedSequence) -> None:
        """Remove a sequence, also a resting one, and free its slot."""
        with self._lock:
            if self.is_paused(sequence):
                del self._resting[sequence.slot]
                if not sequence.sound:
                    self.cache.clear(sequence.slot)
            if self._sequences[sequence.slot] is sequence:
                self._sequences[sequence.slot] = None
                if not sequence.finished:
                    self.cache.clear(sequence.slot)  # nothing of it has been checked for NaN yet; see `_fail`
            self.errors.pop(sequence, None)

    def step(self) -> None:
        """One round: an open, unfinished sequence gets at least one token, or reads a chunk of its prompt.

        Where heads are to write for some sequences and not for others, they wait for up to `PATIENCE` rounds for one another, so
        that their passes serve many. A sequence that fails is finished and its error stored in `errors`; the others continue.
        """
        with self._lock:
            self._step()

    def step_for(self, sequence: DecodedSequence, n_written: int) -> None:
        """Run rounds, in this or other threads, until `sequence` has more than `n_written` tokens or is finished."""
        while True:
            with self._lock:
                if sequence.finished or sequence.n_written > n_written:
                    return
                self._step()

    @torch.inference_mode()
    def _step(self) -> None:
        active = [s for s in self._sequences if s is not None and not s.finished]
        if not active:
            return
        active = together(active)
        self._backbone_pass(active)
        for k in range(self.n_heads):
            drafting = [s for s in active if s.next_head() == k]
            if not drafting:
                break
            self._head_pass(k, drafting)

    def _backbone_pass(self, sequences: list[DecodedSequence]) -> None:
        begun = self._clock()
        kind = "prefill" if all(not s.writers for s in sequences) else "backbone"
        stops = [min(len(s.ids), s.read[0] + PREFILL_CHUNK) for s in sequences]
        rows, hidden = self._run(0, sequences, stops)
        ready: list[DecodedSequence] = []
        wanted: list[int] = []
        for sequence, stop, last in zip(sequences, stops, rows.last, strict=True):
            sequence.backbone_passes += 1
            if stop == len(sequence.ids):
                ready.append(sequence)
                wanted += range(last - sequence.drafts, last + 1)
        if ready:
            self._settle(ready, hidden[wanted] if len(wanted) < rows.total else hidden)
        self.seconds[kind] += self._clock() - begun

    def _head_pass(self, k: int, sequences: list[DecodedSequence]) -> None:
        begun = self._clock()
        rows, hidden = self._run(k + 1, sequences, [len(s.ids) for s in sequences])
        for sequence in sequences:
            sequence.head_passes += 1
        outputs = hidden[rows.last] if len(rows.last) < rows.total else hidden
        greedy_rows = [i for i, s in enumerate(sequences) if s.options.sampling.plain_argmax]
        entropies: list[float | None] | None = [] if any(s.drafting for s in sequences) else None
        tokens = self._most_likely(sequences, outputs, greedy_rows, entropies=entropies)
        greedy = dict(zip(greedy_rows, zip(tokens, entropies or [None] * len(tokens), strict=True), strict=True))
        for i, sequence in enumerate(sequences):
            proposal = None
            if i in greedy:
                token, entropy = greedy[i]
            else:
                token, entropy, proposal = self._draw_draft(sequence, outputs[i])
            if token == NOT_FINITE:
                self._fail(sequence)
            else:
                sequence.write_head(token, proposal, entropy)
        self.seconds["heads"] += self._clock() - begun

    def _run(self, predictor: int, sequences: list[DecodedSequence], stops: list[int]) -> tuple[Rows, Tensor]:
        """Run predictor 0 (the backbone) or k + 1 (head k) over its unread rows of `sequences`, up to `stops`."""
        for sequence, stop in zip(sequences, stops, strict=True):
            self._make_room(sequence, predictor, stop)
        spans = [Span(s.slot, s.unread_from(predictor), stop) for s, stop in zip(sequences, stops, strict=True)]
        ids = [i for s, span in zip(sequences, spans, strict=True) for i in s.ids[span.start : span.stop]]
        if self._rows is not None and self._rows.is_followed_by(predictor, spans):
            rows = self._rows.following(spans, ids)
        else:
            rows = self.runtime.rows(predictor, spans, ids)
        self._rows = rows
        hidden = self._passes.run(
            predictor, rows, self.cache, _audio_states(sequences, spans) if predictor == 0 else None
        )
        for sequence, stop in zip(sequences, stops, strict=True):
            sequence.has_read(predictor, stop, self.cache.window)
        return rows, hidden

    def _make_room(self, sequence: DecodedSequence, predictor: int, stop: int) -> None:
        """Let the next head read the rows that would leave the window when `predictor` reads up to `stop`."""
        reader = predictor + 1
        if reader > sequence.n_heads or stop - sequence.unread_from(reader) < self.cache.window:
            return
        available = min(sequence.read[predictor] + 1, len(sequence.ids))
        self._run(reader, [sequence], [available])
        sequence.head_passes += 1

    def _settle(self, sequences: list[DecodedSequence], hidden: Tensor) -> None:
        """Commit the result of a backbone pass: the accepted drafts, and its own token after them.

        hidden: for each sequence in turn, the rows of its last committed token and of every draft.
        """
        counts = [s.drafts + 1 for s in sequences]
        greedy_rows = [i for i, s in enumerate(sequences) if s.options.sampling.plain_argmax]
        own = iter(self._most_likely(sequences, hidden, greedy_rows, counts))
        for i, (sequence, outputs) in enumerate(zip(sequences, hidden.split(counts), strict=True)):
            if i in greedy_rows:
                tokens = [next(own) for _ in range(counts[i])]
                kept = agreeing(sequence.ids[len(sequence.ids) - sequence.drafts :], tokens, sequence.options.groups)
                token = tokens[kept]
            else:
                kept, token = self._draw_own(sequence, outputs)
            if token == NOT_FINITE:
                self._fail(sequence)
            else:
                sequence.settle(kept, token)
            sequence.run = 0

    def _most_likely(
        self,
        sequences: list[DecodedSequence],
        hidden: Tensor,
        greedy_rows: list[int],
        counts: list[int] | None = None,
        entropies: list[float | None] | None = None,
    ) -> list[int]:
        """Argmax tokens of the last `counts` rows of the `greedy_rows` sequences; `hidden` holds all sequences' rows.

        entropies: receives the rows' entropies, see `Scorer.most_likely`.
        """
        if not greedy_rows:
            return []
        counts = counts or [1] * len(sequences)
        restrictions = [sequences[i].restriction(place) for i in greedy_rows for place in range(-counts[i], 0)]
        if len(greedy_rows) < len(sequences):
            pieces = hidden.split(counts)
            hidden = torch.cat([pieces[i] for i in greedy_rows])
        return self.scorer.most_likely(hidden, restrictions, entropies)

    def _draw_draft(self, sequence: DecodedSequence, hidden: Tensor) -> tuple[int, float | None, Tensor | None]:
        """A head's token, the entropy of its distribution and, under sampled verification, that distribution."""
        part, chances = self.scorer.distribution(hidden, sequence, len(sequence.ids) - 1)
        if not bool(chances.isfinite().all()):
            return NOT_FINITE, None, None
        token = part.token(sequence.sampler.draw(chances))
        entropy = float(torch.special.entr(chances).sum()) if sequence.drafting is not None else None
        return token, entropy, chances if sequence.verifies and not sequence.sampler.settings.greedy else None

    def _draw_own(self, sequence: DecodedSequence, hidden: Tensor) -> tuple[int, int]:
        """Drafts kept and the backbone's own token after them, both drawn; `hidden: (drafts + 1, hidden_size)`."""
        first = len(sequence.ids) - 1 - sequence.drafts
        scored = [self.scorer.distribution(row, sequence, first + i) for i, row in enumerate(hidden)]
        if not all(bool(chances.isfinite().all()) for _, chances in scored):
            return 0, NOT_FINITE
        drafts = sequence.ids[len(sequence.ids) - sequence.drafts :]
        parts, targets = zip(*scored, strict=True)
        options = sequence.options
        if options.sampling.greedy:
            tokens = [part.token(sequence.sampler.draw(chances)) for part, chances in scored]
            kept = agreeing(drafts, tokens, options.groups)
            return kept, tokens[kept]
        columns = [part.column(token) for part, token in zip(parts, drafts, strict=False)]
        groups = None
        if options.groups is not None:
            groups = options.groups, [part.column(options.groups.first_code) for part in parts]
        kept, column = speculative(columns, sequence.proposals, targets, sequence.sampler, groups)
        return kept, parts[kept].token(column)

    def _fail(self, sequence: DecodedSequence) -> None:
        sequence.finished = True
        self.cache.clear(sequence.slot)  # a leftover NaN would reach the slot's next sequence through masked entries
        self.errors[sequence] = UserError(
            "the model's output was not a number, so this session was ended; check the weights, or decode in float32"
        )


def _chosen(graphs: bool | None, device: torch.device) -> bool:
    return device.type == "cuda" if graphs is None else graphs


def _audio_states(sequences: list[DecodedSequence], spans: list[Span]) -> AudioStates | None:
    """Encoder states that the backbone reads at the rows of `spans`, if any."""
    rows: list[int] = []
    states: list[Tensor] = []
    first = 0
    for sequence, span in zip(sequences, spans, strict=True):
        if sequence.states and span.start < sequence.n_prompt:
            places = [p for p in sequence.states if span.start <= p < span.stop]
            rows += [first + p - span.start for p in places]
            states += [sequence.states[p] for p in places]
        first += span.length
    return AudioStates(rows, torch.stack(states)) if rows else None
