"""Voices: what speaks texts while a corpus is prepared. `conf/voice/` names one by `_target_`.

A recipe, which may be untrusted, can use only voices that are registered as harmless; commands and servers can be set
only on the command line.
"""

import errno
import hashlib
import io
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soundfile

from vita_audio_pl.config.component import TARGET, Component, Custom, component, find_class, written_settings
from vita_audio_pl.config.fields import setting
from vita_audio_pl.config.plugins import load_inherited_plugins
from vita_audio_pl.data.readers.base import LeftOut
from vita_audio_pl.errors import UserError, shown
from vita_audio_pl.spoken_world import synthesis
from vita_audio_pl.storage.remote_file import Unreachable

NOT_SPOKEN = "not spoken"


@runtime_checkable
class Voice(Protocol):
    """Synthesises one text at a time; called from several threads."""

    def speak(self, text: str) -> tuple[np.ndarray, int]:
        """The text as `(samples,) float32` in [-1, 1], and the sample rate in Hz.

        Raises:
            LeftOut: this text cannot be synthesised.
            OSError: the voice is not available (`errors.is_machine_fault`).
        """
        ...


@dataclass
class VoiceSettings(Component):
    """Base of the settings of our voices."""

    def build(self) -> Voice:
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Everything that the audio depends on: it is in the names of shards and in data cards, and has no secrets.

        Raises:
            UserError: the voice cannot be used on this machine.
        """
        raise NotImplementedError


def voice_facts(voice: "VoiceSettings | Custom") -> dict[str, Any]:
    """Everything that a voice's audio depends on; also for user-defined classes.

    Raises:
        UserError: the voice cannot be used here, its class has no `speak`, or a setting is named like a secret.
    """
    if isinstance(voice, VoiceSettings):
        return voice.facts()
    kind = find_class(voice.path, "tts")
    if not hasattr(kind, "speak") and not hasattr(kind, "build"):
        raise UserError(f"tts: {voice.path} has no method speak(text); docs/extend.md shows one")
    return {"kind": voice.path, **written_settings(voice, "tts")}


@dataclass
class Espeak(VoiceSettings):
    """espeak-ng, a formant synthesiser for about a hundred languages: intelligible, but not a real person's voice."""

    name: str = setting("en-us", "voice from `espeak-ng --voices`, perhaps with a variant such as en-us+f2")
    speed: int = setting(165, "rate of speech in words a minute", at_least=80, at_most=450)
    pitch: int = setting(50, "pitch on espeak-ng's scale, 0 to 99", at_least=0, at_most=99)

    def build(self) -> Voice:
        return _Espeak(synthesis.Voice(self.name, self.speed, self.pitch))

    def facts(self) -> dict[str, Any]:
        version = synthesis.version_of("espeak-ng")
        try:
            synthesis.speak_text("a", synthesis.Voice(self.name))  # an unknown name is reported before any work
        except UserError as error:
            raise UserError(
                f"the voice '{self.name}' does not speak ({error}); `espeak-ng --voices` lists them"
            ) from None
        return {"kind": "espeak", "name": self.name, "speed": self.speed, "pitch": self.pitch, "version": version}


@dataclass(frozen=True)
class _Espeak:
    voice: synthesis.Voice

    def speak(self, text: str) -> tuple[np.ndarray, int]:
        try:
            samples = synthesis.speak_text(text, self.voice)
        except UserError as error:
            raise LeftOut(NOT_SPOKEN, str(error)) from None
        return samples.astype(np.float32) / 32768, synthesis.SAMPLE_RATE


@dataclass
class Command(VoiceSettings):
    """Any program: run once per text, which it reads from standard input; without a shell.

    Keys belong in the environment, which the program inherits: only a hash of the command line is stored, but other
    users of the machine can read it while it runs.
    """

    command: str = setting(
        meaning="program and arguments in shell syntax; it writes the file `{output}`, or else its standard output is the sound"
    )
    name: str = setting("", "name of the voice in data cards; empty = the program")
    timeout_seconds: float = setting(300.0, "longest time to wait for one text, in seconds", above=0)

    def check(self) -> None:
        """Refuses what is no command, or names no program.

        Raises:
            UserError: says so.
        """
        if shutil.which(self._words()[0]) is None:
            raise UserError(f"tts.command: there is no program '{self._words()[0]}' on this machine")

    def build(self) -> Voice:
        return _Command(tuple(self._words()), self.timeout_seconds)

    def facts(self) -> dict[str, Any]:
        words = self._words()
        digest = hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
        return {"kind": "command", "name": self.name or Path(words[0]).name, "command": digest}

    def _words(self) -> list[str]:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UserError(f"tts.command cannot be read as words of a shell: {error}") from None
        if not words:
            raise UserError("tts.command is empty: give the program and its arguments")
        return words


@dataclass(frozen=True)
class _Command:
    words: tuple[str, ...]
    timeout: float

    def speak(self, text: str) -> tuple[np.ndarray, int]:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "speech.wav"
            words = [word.replace("{output}", str(output)) for word in self.words]
            try:
                done = subprocess.run(
                    words, input=text.encode("utf-8", "replace"), capture_output=True, timeout=self.timeout
                )
            except subprocess.TimeoutExpired:
                raise LeftOut(NOT_SPOKEN, f"{self.words[0]} took more than {self.timeout:g} s") from None
            except FileNotFoundError as error:  # it was there when the command began
                raise Unreachable(errno.ENOTCONN, str(error.strerror), self.words[0]) from error
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip()[-300:]
                raise LeftOut(NOT_SPOKEN, f"{self.words[0]} ended with status {done.returncode}: {said}")
            if words == list(self.words):
                return decoded(done.stdout, self.words[0])
            return decoded(output.read_bytes() if output.is_file() else b"", self.words[0])


class _Streamed(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A sound file that is read from its start to its end, wherever that is: a streamed FLAC's header does not say."""

    def seekable(self) -> bool:
        return False


def decoded(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """A sound file of any format that libsndfile reads, as `Voice.speak` returns it; channels are averaged.

    Raises:
        LeftOut: it is none, or empty.
    """
    if not data:
        raise LeftOut(NOT_SPOKEN, f"{name} gave no sound")
    try:
        with _Streamed(io.BytesIO(_with_its_length(data, name))) as file:
            rate, blocks = int(file.samplerate), list[np.ndarray]()
            # block by block, since a streamed FLAC's header does not say how many there are
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise LeftOut(NOT_SPOKEN, f"{name} gave {len(data)} bytes that are no sound: {error!s:.200}") from None
    return np.concatenate([np.empty(0, np.float32), *blocks]), rate


_BLOCK = 1 << 16  # frames decoded at a time
_NO_LENGTH = 0x7FFF_0000  # bytes; what streaming writers put where the length belongs is as large as fits


def _with_its_length(data: bytes, name: str) -> bytes:
    """A WAV file that was streamed, whose header could not know its length, with it; any other as it is."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return data
    at = 12
    while at + 8 <= len(data):
        size, rest = int.from_bytes(data[at + 4 : at + 8], "little"), len(data) - at - 8
        if data[at : at + 4] == b"data":
            if size == 0 or size >= _NO_LENGTH:
                return data[: at + 4] + rest.to_bytes(4, "little") + data[at + 8 :]
            if size > rest:
                raise LeftOut(NOT_SPOKEN, f"{name} gave {rest} bytes of sound of {size}")
            return data
        at += 8 + size + size % 2
    return data


_REGISTERED: dict[str, type[VoiceSettings]] = {"espeak": Espeak}


def register_voice(kind: str, settings: type[VoiceSettings]) -> None:
    """Lets recipes name a voice: one that does no more for a stranger's recipe than speak.

    Raises:
        ValueError: another voice has that name.
    """
    if _REGISTERED.get(kind, settings) is not settings:
        raise ValueError(f"a voice named '{kind}' is registered already")
    _REGISTERED[kind] = settings


def recipe_voice(value: Any, where: str) -> VoiceSettings:
    """The voice that a recipe names, `{kind: espeak, name: en-us}` or the kind alone.

    Raises:
        UserError: recipes cannot name it, or it has no such setting.
    """
    settings = {"kind": value} if isinstance(value, str) else value
    kind = settings.get("kind") if isinstance(settings, Mapping) else None
    if isinstance(kind, str) and kind not in _REGISTERED:
        load_inherited_plugins()
    if not isinstance(kind, str) or kind not in _REGISTERED or TARGET in settings:
        raise UserError(
            f"{where}: a recipe can have its texts spoken by {', '.join(_REGISTERED)}, as in 'tts: {{kind: espeak, name: "
            f"en-us}}', not by {shown(value)}; commands and servers are given on the command line alone, as tts=command or "
            "tts=endpoint"
        )
    own = {str(name): item for name, item in settings.items() if name != "kind"}
    made: VoiceSettings = component({TARGET: _REGISTERED[kind].target(), **own}, f"{where}: tts")
    return made
