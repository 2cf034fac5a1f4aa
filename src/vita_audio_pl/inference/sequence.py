"""One sequence during decoding: its tokens, how far each predictor has read them, and which predictor is next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from vita_audio_pl.config.decoding import VERIFY_MODES, Greedy, Sampling
from vita_audio_pl.config.numbers import whole_number
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.checks import token_ids
from vita_audio_pl.inference.code_groups import CodeGroups
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.drafting import Drafting
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.sampling import Sampler
from vita_audio_pl.interleave import DecodePattern


@dataclass(frozen=True)
class Options:
    """How one sequence is decoded.

    Attributes:
        pattern: which predictor writes which token; under verification, the longest run of heads is the longest draft.
        max_new_tokens: limit of the answer.
        stop_ids: tokens that end it.
        sampling: how tokens are drawn.
        constraint: restriction inside audio spans; None as in the published system.
        verify: `none`, `greedy` (the backbone's own greedy tokens) or `sample` (its own distribution); exactly so in
            float32, but for near ties in 16 bits. `groups` is looser; see `verify`.
        first_chunk: `(begin, end)` markers of audio; a draft that opens the answer's first audio span is then kept
            without verification up to the span's end, so that it can be played at once. None verifies everything.
        groups: of codes, which `groups` needs.

    Raises:
        UserError: a value of another type, an unknown mode, or one that contradicts the sampling.
    """

    pattern: DecodePattern
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    sampling: Sampling = Greedy
    constraint: SpanConstraint | None = None
    verify: str = "none"
    first_chunk: tuple[int, int] | None = None
    groups: CodeGroups | None = None

    def __post_init__(self) -> None:
        for name, kind in (("pattern", DecodePattern), ("sampling", Sampling), ("constraint", SpanConstraint | None)):
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be a {kind}")
        object.__setattr__(self, "stop_ids", frozenset(self.stop_ids))
        object.__setattr__(self, "max_new_tokens", whole_number(self.max_new_tokens, "max_new_tokens", least=1))
        if self.verify not in VERIFY_MODES:
            raise UserError(f"verify={self.verify!r} is unknown; use one of {', '.join(VERIFY_MODES)}")
        if (self.verify == "groups") != (self.groups is not None):
            raise UserError("verify=groups needs groups of codes, and no other mode has any (LoadedModel.verification)")
        if self.verify == "greedy" and not self.sampling.greedy:
            raise UserError(
                f"verify=greedy gives the most likely tokens, but temperature={self.sampling.temperature}; "
                "use verify=sample, or temperature 0"
            )

    def check_ids(self, vocabulary: int) -> None:
        """Check that all ids in these settings are valid for a model with `vocabulary` rows.

        Raises:
            UserError: one is not.
        """
        token_ids(self.stop_ids, "stop_ids", vocabulary)
        if self.first_chunk is not None and len(token_ids(self.first_chunk, "first_chunk", vocabulary)) != 2:
            raise UserError(f"first_chunk is {self.first_chunk!r}; it must be the begin and the end marker of audio")
        if self.constraint is not None and self.constraint.largest >= vocabulary:
            raise UserError(
                f"the constraint names token {self.constraint.largest}, but the model's vocabulary has {vocabulary}; "
                "it was made for another model"
            )


class PromptAudio(NamedTuple):
    """Features of a prompt's recordings, and the encoder states that the backbone reads at their placeholders."""

    clips: tuple[Tensor, ...]
    states: Mapping[int, Tensor]


class DecodedSequence:
    """State of one answer; its cache rows are in `slot`.

    Attributes:
        ids: prompt, committed tokens, and then drafts that await verification.
        read: per predictor (backbone first), the first position it has not read yet.
        oldest: per predictor, the first position whose output the next one can still access.
        sound: whether everything read of it was checked, so that its slot contains no NaN.
        drafts: number of tokens at the end of `ids` that await verification.
        run: number of heads that have written since the last backbone pass.
        states: encoder states that the backbone reads at these positions of the prompt, and the `clips` they encode.
        chained: whether heads read all rows, one another's results; otherwise the last row of the backbone alone.
        drafting: decides under verification whether one more draft pays; None drafts as far as the pattern goes.
        proposals: under sampled verification, the distribution each draft was drawn from.
        waited: rounds that it has waited for others.
    """

    def __init__(
        self,
        slot: int,
        prompt: Sequence[int],
        options: Options,
        n_heads: int,
        audio: PromptAudio | None = None,
        drafting: Drafting | None = None,
        chained: bool = True,
    ):
        self.slot, self.options, self.chained = slot, options, chained
        self.states = dict(audio.states) if audio else {}
        self.clips = audio.clips if audio else ()
        self.ids = list(prompt)
        self.n_prompt = len(self.ids)
        self.sampler = Sampler(options.sampling)
        self.verifies = options.verify != "none"
        self.drafting = drafting
        self._pattern_writers: list[int] = options.pattern.writers(options.max_new_tokens, n_heads).tolist()
        self.n_heads = max(self._pattern_writers)
        self.read = list(range(n_heads + 1))
        self.oldest = list(range(n_heads + 1))
        self.sound = True
        self.drafts = self.run = self.waited = self._unread = 0
        self.proposals: list[Tensor] = []
        self.writers: list[int] = []
        self.backbone_passes = self.head_passes = 0
        self.drafted, self.accepted = [0] * self.n_heads, [0] * self.n_heads
        self.finished = self.stopped = False
        self._trusts_draft = options.first_chunk is not None
        self._inside: list[bool] = []
        if options.constraint is not None:
            state = False
            for token in self.ids:
                state = options.constraint.after(state, token)
                self._inside.append(state)

    @property
    def n_written(self) -> int:
        """Committed tokens after the prompt."""
        return len(self.writers)

    @property
    def n_committed(self) -> int:
        """Prompt and committed tokens."""
        return self.n_prompt + len(self.writers)

    def next_head(self) -> int | None:
        """The head that writes the next token; None if the backbone does."""
        if self.finished or not self.writers:
            return None
        if not self.verifies:
            writer = self._pattern_writers[self.n_written]
            return writer - 1 if writer else None
        if self.run >= self.n_heads or self.n_written + self.drafts >= self.options.max_new_tokens:
            return None
        if self.drafts and self.ids[-1] in self.options.stop_ids:
            return None
        return self.run if self._played_unverified or self._pays() else None

    @property
    def heads_follow(self) -> bool:
        """Whether heads write after its next backbone pass, whatever that gives; under verification, that is not known."""
        written = self.n_written + 1
        return not self.verifies and written < len(self._pattern_writers) and self._pattern_writers[written] > 0

    def unread_from(self, predictor: int) -> int:
        """The first position that a predictor has to read in its next pass."""
        return self.read[predictor] if self.chained or not predictor else len(self.ids) - 1

    def restriction(self, position: int) -> SpanConstraint | None:
        """The restriction of the token after `position`."""
        return self.options.constraint if self._inside and self._inside[position] else None

    def write_backbone(self, token: int) -> None:
        """Commit a token that the backbone chose."""
        self._push(token)
        self._commit(0)

    def write_head(self, token: int, proposal: Tensor | None = None, entropy: float | None = None) -> None:
        """Add the token of the next head: committed, or as a draft if it will be verified.

        Args:
            proposal: under sampled verification, the distribution that the token was sampled from.
            entropy: of the head's distribution in nats, if known.
        """
        if self.drafting is not None and not self._played_unverified:
            self.drafting.drafted(self._unread, entropy)
        self._push(token)
        self.run += 1
        if not self.verifies or self._trusted(token):
            self._commit(self.run)
        else:
            self.drafts += 1
            self.drafted[self.run - 1] += 1
            if proposal is not None:
                self.proposals.append(proposal)

    def settle(self, kept: int, token: int) -> None:
        """Commit the first `kept` drafts and then the backbone's own `token`; drop the other drafts."""
        first_head = self.run - self.drafts
        if self.drafting is not None and first_head == 0:
            self.drafting.settled(kept)
        for i in range(kept):
            self.accepted[first_head + i] += 1
            self._commit(first_head + i + 1)
        self.drafts = 0
        self.proposals.clear()
        self._cut(self.n_committed)
        if not self.finished:
            self.write_backbone(token)

    def has_read(self, predictor: int, stop: int, window: int) -> None:
        """Record that a predictor has read all rows before `stop`, of whose outputs the last `window` are kept."""
        self.oldest[predictor] = max(min(self.oldest[predictor], self.read[predictor]), stop - window)
        self.read[predictor] = stop

    def interrupt(self) -> None:
        """End the sequence where it is and drop drafts that await verification."""
        self.sound = self.finished
        self.drafts = 0
        self.proposals.clear()
        self._cut(self.n_committed)
        self.finished = True

    def result(self) -> Generation:
        """The answer so far."""
        return Generation(
            ids=self.ids[self.n_prompt : self.n_committed],
            writers=list(self.writers),
            backbone_passes=self.backbone_passes,
            head_passes=self.head_passes,
            stopped=self.stopped,
            drafted=list(self.drafted) if self.verifies else [],
            accepted=list(self.accepted) if self.verifies else [],
        )

    @property
    def _played_unverified(self) -> bool:
        """Whether this round began, or may begin, with drafts that are played at once."""
        return self._trusts_draft or self.run > self.drafts

    def _pays(self) -> bool:
        if self.drafting is None:
            return True
        self._unread = len(self.ids) - max(
            self.unread_from(self.run + 1), self.n_prompt
        )  # heads read a prompt once, as the backbone does
        return self.drafting.pays(self._unread)

    def _trusted(self, token: int) -> bool:
        """Whether a drafted token belongs to the first audio chunk, which is played without verification."""
        if not self._trusts_draft or self.options.first_chunk is None:
            return False
        begin, end = self.options.first_chunk
        opens_span = self.run > 1 or token == begin
        self._trusts_draft = opens_span and token != end
        return opens_span

    def _push(self, token: int) -> None:
        if self.options.constraint is not None:
            self._inside.append(self.options.constraint.after(self._inside[-1], token))
        self.ids.append(token)

    def _commit(self, writer: int) -> None:
        token = self.ids[self.n_committed]
        self.writers.append(writer)
        self.stopped = token in self.options.stop_ids
        self.finished = self.stopped or self.n_written >= self.options.max_new_tokens

    def _cut(self, length: int) -> None:
        """Drop all tokens from position `length` on, for every predictor."""
        if length == len(self.ids):
            return
        del self.ids[length:]
        del self._inside[length:]
        # row p of a predictor depends on the tokens up to p only, so rows before the cut stay valid
        self.read = [min(read, max(length, first)) for first, read in enumerate(self.read)]
