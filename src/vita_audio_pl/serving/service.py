"""Shared by all endpoints: the model, the engine, the workers and the metrics."""

import asyncio
import io
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.codecs.audio import read_audio
from vita_audio_pl.codecs.protocol import Codec, SoundSource
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import ChatFormat, Item, TurnContent
from vita_audio_pl.inference.loading import ModelDescription
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.serving.answer import Answer
from vita_audio_pl.serving.audio_input import LEAST_AUDIO, AudioInput
from vita_audio_pl.serving.engine import Busy, Engine, Link, ServedHistory
from vita_audio_pl.serving.metrics import Family, Metrics
from vita_audio_pl.serving.pcm import OUTPUT_RATE
from vita_audio_pl.serving.requests import Decoding
from vita_audio_pl.serving.resampling import Resampled
from vita_audio_pl.serving.settings import ServeConfig, api_keys
from vita_audio_pl.serving.sound_processes import RemoteSound, SoundProcesses, warm_up
from vita_audio_pl.serving.workers import Workers

_MOST_REMEMBERED = 256
_CHARACTERS_A_TOKEN = 16  # more than the texts of any language have
_HELD = 4  # contexts that the history of a session may fill; what does not fit into one is left out of its next answer


class OpenConnection(Protocol):
    """A session, for shutting down."""

    @property
    def busy(self) -> bool:
        """Whether it still has something to send."""

    def end(self, code: int, reason: str) -> None:
        """Close it."""


class Replicas(Protocol):
    """All servers of one model behind one address, including this one."""

    async def remembered(self, audio_id: str) -> Item | None:
        """The answer that one of them gave under this id."""

    async def counts(self) -> Mapping[str, list[Family]]:
        """Metrics of each, by name."""


class Service:
    """Everything that outlives a request.

    Args:
        loaded, codec: the model, which need not have its weights here, and its codec.
        link: to the loop that decodes.

    Raises:
        UserError: a voice cannot be read, or there is not enough memory.
    """

    def __init__(self, loaded: ModelDescription, codec: Codec | None, config: ServeConfig, link: Link):
        self.loaded, self.codec, self.config = loaded, codec, config
        self.keys = api_keys(config)
        self.name = config.name or _name(config.model)
        self.started = int(time.time())
        self.sound_processes: SoundProcesses | None = None
        self.audio_input = AudioInput(loaded, codec)
        self.listening = Workers(config.sound_workers)
        self.metrics = Metrics()
        self.voices = {name: self._voice(Path(path)) for name, path in config.voices.items()}
        self.capacity = link.capacity
        self.engine = Engine(
            link,
            ChatFormat.of(loaded, codec),
            when_full=config.when_full,
            queue_limit=config.limits.queue,
            yields=lambda: self.sound_processes is None and self.pool.behind,
        )
        self.most_new_tokens = min(config.token_limit, self.capacity - 1)
        self.sessions: dict[str, int] = {}  # open sessions per client
        self.draining = False
        self.connections: set[OpenConnection] = set()
        self.replicas: Replicas | None = None  # None: this server is alone
        self.spoken: OrderedDict[str, Item] = OrderedDict()  # answers that later requests may name by their audio's id
        self._open_answers: set[object] = set()  # answers whose last event has not been read
        try:
            self.sound_processes = self._begin_processes()  # after all that may refuse to start
        except BaseException:
            self.engine.stop()
            raise
        at_once = 0 if self.sound_processes is None else self.sound_processes.at_once
        self.pool = Workers(max(config.sound_workers, at_once))
        self._warm_up()
        gauge = self.metrics.gauge
        gauge("sessions", "Open WebSocket sessions.", lambda: sum(self.sessions.values()))
        gauge("slots", "Answers that can be written at a time.", lambda: self.engine.slots)
        gauge("running", "Answers that are being written.", lambda: self.engine.running)
        gauge("queue", "Answers that wait for a slot.", lambda: self.engine.waiting)
        gauge("draining", "1 while the server ends its last answers.", lambda: self.draining)

    def options(
        self, decoding: Decoding, spoken: bool, most: int | None = None, **of_request: float | int | None
    ) -> Options:
        """`Decoding.options` of this server's model and settings; most: fewer tokens than `most_new_tokens`."""
        most = self.most_new_tokens if most is None else most
        return decoding.options(self.loaded, self.codec, self.config, most, spoken, **of_request)

    def ask(
        self,
        conversation: ServedHistory,
        options: Options,
        *,
        sound: bool = True,
        rate: int = OUTPUT_RATE,
        place: Callable[[], int] | None = None,
    ) -> Answer:
        """Request an answer to a conversation; call in the event loop.

        sound: whether to decode its codes to audio; rate: that it is wanted at, Hz; place: gives the answer's in the history at its end,
        where others are added or taken away meanwhile.

        Raises:
            Busy: too many answers are waiting.
        """
        try:
            if self.draining:
                raise Busy(self.config.drain_seconds)
            return Answer(self, conversation, options, sound, rate, place)
        except Busy:
            self.metrics.answered("refused")
            raise

    async def encode_audio(self, data: bytes, name: str) -> tuple[TurnContent, float]:
        """A recording in any file format that libsndfile reads, as model input, and how many seconds it has.

        Raises:
            UserError: it is not a recording, or too short or too long.
        """
        wave = await self.in_worker(lambda: self._read(data, name))
        seconds = wave.size / self.audio_input.rate
        if seconds < LEAST_AUDIO:
            raise UserError(
                f"{name} has {1000 * seconds:.0f} ms of audio; speech takes {1000 * LEAST_AUDIO:.0f} ms at least"
            )
        return await self.in_worker(lambda: self.audio_input.encode(wave)), seconds

    async def in_worker(self, work: Any) -> Any:
        """Run `work()` in a thread for what comes in, and return its result."""
        return await asyncio.wrap_future(self.listening.submit(work))

    def voice_turn(self, voice: Any) -> tuple[TurnContent, ...]:
        """The system turn's content that requests a voice; empty for the model's own.

        voice: a name, or `{"id": name}`; names that are not in the settings' voices mean the model's own.
        """
        name = self.voice_name(voice)
        return () if name is None else ("Your Voice: ", self.voices[name], "\n")

    def voice_name(self, voice: Any) -> str | None:
        """The name in the settings' voices that `voice` means; None for the model's own."""
        name = voice.get("id") if isinstance(voice, dict) else voice
        return name if isinstance(name, str) and name in self.voices else None

    def check_text(self, characters: int, of: str) -> None:
        """Refuse too long a text before it is tokenised, which holds up everybody.

        of: what has the text, for the sentence.

        Raises:
            UserError: it has more than `limits.text_characters`.
        """
        most = self.config.limits.text_characters
        if characters > most:
            raise UserError(
                f"the text of {of} has {characters} characters, more than the {most} that are taken "
                "(limits.text_characters); shorten it or send it in parts"
            )

    def check_texts(self, characters: Sequence[int]) -> None:
        """The same of a whole conversation. characters: of each message, all of its parts.

        Raises:
            UserError: a message is too long, or all together are more than ever fits into the context.
        """
        for number, count in enumerate(characters, 1):
            self.check_text(count, f"message {number}")
        most = max(_CHARACTERS_A_TOKEN * self.capacity, self.config.limits.text_characters)
        if sum(characters) > most or len(characters) > self.capacity:
            raise UserError(
                f"{len(characters)} messages with {sum(characters)} characters are more than could ever fit into the "
                f"{self.capacity} tokens of a conversation; leave out the oldest"
            )

    def check_room(self, items: Sequence[Item]) -> None:
        """Refuse a history that grows and is never answered.

        Raises:
            UserError: it fills the context several times.
        """
        if self.engine.chat_format.renderer.length([item.turn for item in items]) > _HELD * self.capacity:
            raise UserError(
                f"the conversation holds more than {_HELD} times the {self.capacity} tokens that an answer can take into "
                "account; delete items or begin a new one"
            )

    def remember(self, audio_id: str, item: Item) -> None:
        """Store an answer for requests that name it."""
        self.spoken[audio_id] = item
        while len(self.spoken) > _MOST_REMEMBERED:
            self.spoken.popitem(last=False)

    async def remembered(self, audio_id: str) -> Item | None:
        """The answer with that id, from whichever replica gave it; None if it is not stored any more."""
        if audio_id not in self.spoken and self.replicas is not None:
            if (item := await self.replicas.remembered(audio_id)) is not None:
                self.remember(audio_id, item)
        return self.spoken.get(audio_id)

    async def drain(self, forced: Callable[[], bool] = lambda: False) -> None:
        """Accept no new answers, let those in progress finish, for `drain_seconds` at most, and close the sessions.

        forced: whether to stop waiting.
        """
        self.draining = True
        deadline = time.monotonic() + self.config.drain_seconds
        while self.busy and time.monotonic() < deadline and not forced():
            await asyncio.sleep(0.02)
        for connection in set(self.connections):
            connection.end(1012, "the server is ending")
        told_by = time.monotonic() + 1.0
        while self.connections and time.monotonic() < told_by and not forced():  # before their sockets are closed
            await asyncio.sleep(0.02)

    @property
    def healthy(self) -> bool:
        """Whether answers can be given, in sound as well."""
        return self.engine.alive and (self.sound_processes is None or self.sound_processes.ready)

    @property
    def busy(self) -> bool:
        """Whether an answer is being generated, spoken or waited for."""
        return (
            self.engine.asked > 0 or bool(self._open_answers) or any(connection.busy for connection in self.connections)
        )

    def close(self) -> None:
        """End all answers, threads and processes."""
        self.engine.stop()
        if self.sound_processes is not None:  # the threads may wait for them
            self.sound_processes.close()
        self.pool.close()
        self.listening.close()

    def _read(self, data: bytes, name: str) -> NDArray[np.float32]:
        seconds = self.config.limits.audio_seconds
        return read_audio(io.BytesIO(data), self.audio_input.rate, seconds, name=name)

    def _voice(self, path: Path) -> TurnContent:
        return self.audio_input.encode(read_audio(path, self.audio_input.rate))

    def sound(self, sample_rate: int) -> SoundSource | None:
        """What makes audio at that rate; None without a codec."""
        if self.sound_processes is not None:
            return RemoteSound(self.sound_processes, sample_rate)
        return None if self.codec is None else Resampled(self.codec, sample_rate)

    def _begin_processes(self) -> SoundProcesses | None:
        """Those that have the codec, one of which is ready; none on a GPU, where each would hold it once more."""
        config, folder = self.config, self.loaded.codec_dir
        usual = min(2, len(os.sched_getaffinity(0))) if config.device == "cpu" else 0
        count = usual if config.sound_processes is None else config.sound_processes
        if not count or self.codec is None or folder is None:
            return None
        processes = SoundProcesses(folder, count, config.threads)
        processes.started()
        return processes

    def _warm_up(self) -> None:
        """Make what the first answer would wait for."""
        if self.codec is not None and self.sound_processes is None:  # they have warmed up by themselves
            warm_up(self.codec)
        if self.config.verify == "groups" or hasattr(self.codec, "codebook"):  # a request may ask for it
            self.loaded.verification("groups", self.config.slack, self.codec)


def _name(model: str) -> str:
    """A display name for a model, without its path."""
    parts = [part for part in Path(model).parts if part not in ("model", os.sep, "..", ".")]
    return "-".join(parts[-2:]) or "model"
