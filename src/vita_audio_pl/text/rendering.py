"""Renders turns as training rows and prompts: chat template, interval ratio, labels, writers and loss weights."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import MARKERS_PER_CHUNK, DecodePattern, IntArray, IntervalRatio
from vita_audio_pl.text.messages import ROLES
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.turns import AudioCodes, AudioFrames, TextIds, Turn
from vita_audio_pl.text.vocabulary import Vocabulary

NO_LABEL = -100
NOBODY = -1


@dataclass(frozen=True)
class RenderOptions:
    """How turns become tokens.

    Attributes:
        ratio: interval ratio of answers; None does not interleave.
        pattern: decoding pattern that determines the writers.
        n_heads: heads of the model.
        lead_in: codes put before an answer's audio (silence, so that speech does not get ahead of its text).
        prompt_corruption: share of the codes outside answers replaced by random other codes.
        text_weight: loss weight of text labels, `<|im_end|>` and newline included.
        audio_weight: loss weight of codes and their markers.

    Raises:
        UserError: a share outside [0, 1), a negative weight, all weights zero, or negative lead-in codes.
    """

    ratio: IntervalRatio | None
    pattern: DecodePattern = DecodePattern((8192, 0))
    n_heads: int = 0
    lead_in: tuple[int, ...] = ()
    prompt_corruption: float = 0.0
    text_weight: float = 1.0
    audio_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.prompt_corruption < 1:
            raise UserError(
                f"prompt_corruption={self.prompt_corruption} is not a share; give 0 or more and less than 1"
            )
        if min(self.text_weight, self.audio_weight) < 0 or self.text_weight + self.audio_weight == 0:
            raise UserError(
                f"text_weight={self.text_weight} and audio_weight={self.audio_weight} leave nothing to learn; "
                "give weights of 0 or more, at least one above 0"
            )
        if self.lead_in and min(self.lead_in) < 0:
            raise UserError(f"lead_in={list(self.lead_in)} holds a negative number; give codes of the codec")


@dataclass(frozen=True, eq=False)
class Rendered:
    """Part of a row, all `(length,)`: `ids` int32, `labels` int64 (-100: none), `writers` int8 (-1: none),
    `loss_weights` float32 (0 without a label)."""

    ids: NDArray[np.int32]
    labels: NDArray[np.int64]
    writers: NDArray[np.int8]
    loss_weights: NDArray[np.float32]

    @classmethod
    def empty(cls, length: int) -> "Rendered":
        """Uninitialised arrays to render into."""
        return cls(
            np.empty(length, np.int32),
            np.empty(length, np.int64),
            np.empty(length, np.int8),
            np.empty(length, np.float32),
        )

    def __len__(self) -> int:
        return self.ids.size

    def __getitem__(self, part: slice) -> "Rendered":
        return Rendered(*(getattr(self, field.name)[part] for field in fields(self)))


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens, text labels and audio labels, per turn or sample: arrays of equal shape."""

    tokens: NDArray[np.int64]
    text_labels: NDArray[np.int64]
    audio_labels: NDArray[np.int64]

    def per_sample(self, first_turn: IntArray) -> "Lengths":
        """Sum turns into samples. `first_turn: (samples,)`, index of each sample's first turn; every sample has one."""
        return Lengths(*(np.add.reduceat(getattr(self, field.name), first_turn) for field in fields(self)))


@dataclass(frozen=True)
class LengthRule:
    """Exact rendered lengths from counts, so that an index answers for any ratio without opening a shard.

    Attributes:
        ratio: interval ratio of answers.
        n_lead_in: codes put before an answer's audio.
        around: per role of `ROLES`, template tokens around the content.
        closing: labelled template tokens after an answer's content (`<|im_end|>` and newline).
    """

    ratio: IntervalRatio | None
    n_lead_in: int
    around: tuple[int, ...]
    closing: int

    def of_turns(
        self,
        role: IntArray,
        n_text: IntArray,
        n_codes: IntArray,
        n_audios: IntArray,
        n_placeholders: IntArray | None = None,
    ) -> Lengths:
        """Lengths of many turns at once; all arguments `(turns,)`.

        Args:
            role: index in `ROLES`.
            n_text: text tokens of the content.
            n_codes: codes of all audios.
            n_audios: number of audios, as codes or frames.
            n_placeholders: placeholders of audios given as frames (frames + 4 each).
        """
        answer = np.asarray(role) == ROLES.index("assistant")
        text, codes = np.asarray(n_text, np.int64), np.asarray(n_codes, np.int64)
        codes = codes + self.n_lead_in * (answer & (codes > 0))
        if self.ratio is None:
            chunks: IntArray = (codes > 0).astype(np.int64)
        else:
            chunks = self.ratio.chunks(text, codes)
        spans = np.where(answer, chunks, n_audios)
        audio = codes + MARKERS_PER_CHUNK * spans + (0 if n_placeholders is None else n_placeholders)
        return Lengths(
            tokens=np.asarray(self.around)[role] + text + audio,
            text_labels=np.where(answer, text + self.closing, 0),
            audio_labels=np.where(answer, audio, 0),
        )

    def of_turn(self, turn: Turn) -> int:
        """Rendered length of one turn."""
        n_text, n_codes, n_audios, n_placeholders = turn.counts()
        around = self.around[ROLES.index(turn.role)]
        if turn.role != "assistant":
            return around + n_text + n_codes + n_placeholders + MARKERS_PER_CHUNK * n_audios
        if n_codes:
            n_codes += self.n_lead_in
        if self.ratio is None:
            return around + n_text + n_codes + (MARKERS_PER_CHUNK if n_codes else 0)
        return around + self.ratio.length(n_text, n_codes)


class Renderer:
    """Renders turns as token rows. Stateless after construction; cheap to send to worker processes.

    Every turn is `<|im_start|>` role newline content `<|im_end|>` newline; answers are labelled from their content to
    the last newline, and interleaved by the ratio if they have audio.
    """

    def __init__(self, vocabulary: Vocabulary, tokenizer: TextTokenizer, options: RenderOptions) -> None:
        if vocabulary.n_text != tokenizer.n_text:
            raise UserError(
                f"the vocabulary has {vocabulary.n_text} text tokens and the tokenizer {tokenizer.n_text}; "
                "they do not belong together"
            )
        self.vocabulary = vocabulary
        self.options = options
        newline = tokenizer.encode("\n")
        self._head = {
            role: np.asarray([vocabulary.im_start, *tokenizer.encode(role), *newline], np.int32) for role in ROLES
        }
        self._tail = np.asarray([vocabulary.im_end, *newline], np.int32)
        self._lead_in = np.asarray(options.lead_in, np.int32)
        vocabulary.code_ids(self._lead_in)
        self.length_rule = LengthRule(
            ratio=options.ratio,
            n_lead_in=len(options.lead_in),
            around=tuple(self._head[role].size + self._tail.size for role in ROLES),
            closing=self._tail.size,
        )

    def length(self, turns: Sequence[Turn]) -> int:
        """Length of the result of `render`, from the lengths of the segments only."""
        return sum(self.length_rule.of_turn(turn) for turn in turns)

    def render(self, turns: Sequence[Turn], rng: np.random.Generator | None = None) -> Rendered:
        """Tokens, labels, writers and loss weights of a conversation.

        Args:
            turns: the conversation.
            rng: draws the corrupted codes; required if `prompt_corruption` is above 0.

        Raises:
            UserError: an answer with two audios or with frames, or a code outside the codebook.
        """
        lengths = [self.length_rule.of_turn(turn) for turn in turns]
        out = Rendered.empty(sum(lengths))
        self._fill(turns, lengths, out, rng)
        return out

    def render_into(self, turns: Sequence[Turn], out: Rendered, rng: np.random.Generator | None = None) -> None:
        """Same as `render`, into arrays of exactly `length(turns)`, so that a packed row is filled without a copy."""
        self._fill(turns, [self.length_rule.of_turn(turn) for turn in turns], out, rng)

    def _fill(self, turns: Sequence[Turn], lengths: list[int], out: Rendered, rng: np.random.Generator | None) -> None:
        if self.options.prompt_corruption and rng is None:
            raise ValueError("prompt_corruption needs an rng")
        out.labels.fill(NO_LABEL)
        out.writers.fill(NOBODY)
        out.loss_weights.fill(0)
        if sum(lengths) != len(out):
            raise ValueError(f"{sum(lengths)} tokens do not fit {len(out)} places")
        at = 0
        for turn, length in zip(turns, lengths, strict=True):
            ids = out.ids[at : at + length]
            if turn.role == "assistant":
                has_audio = self._write_answer(ids, turn)
                answer = slice(at + self._head["assistant"].size, at + length)
                out.labels[answer] = out.ids[answer]
                self._name_writers(out.writers[answer], has_audio)
                self._weigh(out.loss_weights[answer], out.ids[answer], has_audio)
            else:
                self._write_prompt_turn(ids, turn, rng)
            at += length
        if at and out.ids.max() >= self.vocabulary.used:
            worst = int(out.ids.max()) - self.vocabulary.first_code
            raise UserError(
                f"code {worst} is outside the codebook of {self.vocabulary.n_codes}; "
                "the audio was encoded by another codec"
            )

    def prompt(self, turns: Sequence[Turn]) -> NDArray[np.int32]:
        """Token ids of a prompt: the turns, then `<|im_start|>assistant` and a newline. Never corrupted."""
        head = self._head["assistant"]
        ids = np.empty(self.length(turns) + head.size, np.int32)
        at = 0
        for turn in turns:
            stop = at + self.length_rule.of_turn(turn)
            if turn.role == "assistant":
                self._write_answer(ids[at:stop], turn)
            else:
                self._write_prompt_turn(ids[at:stop], turn, None)
            at = stop
        ids[at:] = head
        return ids

    def _write_answer(self, ids: NDArray[np.int32], turn: Turn) -> bool:
        """Fill an assistant's turn; returns whether it has audio."""
        head, tail = self._head["assistant"].size, self._tail.size
        ids[:head], ids[-tail:] = self._head["assistant"], self._tail
        content = ids[head:-tail]
        texts = [segment.ids for segment in turn.segments if isinstance(segment, TextIds)]
        audios = [segment for segment in turn.segments if not isinstance(segment, TextIds)]
        if len(audios) > 1 or any(isinstance(audio, AudioFrames) for audio in audios):
            raise UserError("an answer must hold at most one audio, as codes; join the audios or split the answer")
        text: IntArray = texts[0] if len(texts) == 1 else np.concatenate(texts) if texts else np.empty(0, np.int32)
        codes: IntArray = audios[0].codes if audios and isinstance(audios[0], AudioCodes) else np.empty(0, np.int32)
        if codes.size and self._lead_in.size:
            codes = np.concatenate((self._lead_in, codes))
        if not codes.size:
            content[:] = text
            return False
        if self.options.ratio is not None:
            markers = self.vocabulary.begin_of_audio, self.vocabulary.end_of_audio
            self.options.ratio.interleave_into(content, text, codes, *markers, self.vocabulary.first_code)
            return True
        at = 0
        for segment in turn.segments:
            if isinstance(segment, TextIds):
                content[at : at + segment.ids.size] = segment.ids
                at += segment.ids.size
            else:
                at = self._write_codes(content, at, codes)
        return True

    def _write_prompt_turn(self, ids: NDArray[np.int32], turn: Turn, rng: np.random.Generator | None) -> None:
        """Fill a system's or user's turn, with corrupted codes if an rng is given."""
        head = self._head[turn.role]
        at = head.size
        ids[:at] = head
        for segment in turn.segments:
            if isinstance(segment, TextIds):
                ids[at : at + segment.ids.size] = segment.ids
                at += segment.ids.size
            elif isinstance(segment, AudioCodes):
                at = self._write_codes(ids, at, segment.codes if rng is None else self._corrupt(segment.codes, rng))
            else:
                stop = at + segment.n_placeholders + 1
                ids[at], ids[stop] = self.vocabulary.begin_of_audio, self.vocabulary.end_of_audio
                ids[at + 1 : stop] = self.vocabulary.context_of_audio
                at = stop + 1
        ids[at:] = self._tail

    def _write_codes(self, ids: NDArray[np.int32], at: int, codes: IntArray) -> int:
        stop = at + codes.size + 1
        ids[at], ids[stop] = self.vocabulary.begin_of_audio, self.vocabulary.end_of_audio
        ids[at + 1 : stop] = codes
        ids[at + 1 : stop] += self.vocabulary.first_code
        return stop + 1

    def _corrupt(self, codes: IntArray, rng: np.random.Generator) -> IntArray:
        """A share of the codes replaced by other codes, each equally likely."""
        n_codes = self.vocabulary.n_codes
        if not self.options.prompt_corruption or n_codes < 2:
            return codes
        hit = np.flatnonzero(rng.random(codes.size) < self.options.prompt_corruption)
        corrupted = codes.astype(np.int32)
        corrupted[hit] = (corrupted[hit] + rng.integers(1, n_codes, hit.size)) % n_codes
        return corrupted

    def _name_writers(self, writers: NDArray[np.int8], has_audio: bool) -> None:
        """Writers under the pattern up to `<|im_end|>`; text answers and the last newline are the backbone's."""
        if not has_audio:
            writers[:] = 0
            return
        generated = writers.size - self._tail.size + 1
        writers[:generated] = self.options.pattern.writers(generated, self.options.n_heads)
        writers[generated:] = 0

    def _weigh(self, weights: NDArray[np.float32], ids: NDArray[np.int32], has_audio: bool) -> None:
        options, vocabulary = self.options, self.vocabulary
        weights.fill(options.text_weight)
        if has_audio and options.audio_weight != options.text_weight:
            audio = ids >= vocabulary.first_code
            audio |= ids == vocabulary.begin_of_audio
            audio |= ids == vocabulary.end_of_audio
            weights[audio] = options.audio_weight
