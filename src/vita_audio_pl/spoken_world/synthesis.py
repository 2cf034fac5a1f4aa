"""Speech from espeak-ng, called as a program: many sentences to a run, since starting it costs more than speaking.

The sentences of a run are separated by a second of silence and cut apart there.
"""

import shutil
import subprocess
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
import soxr

from vita_audio_pl.errors import UserError

SAMPLE_RATE = 16_000
_BREAK = "<break time='1000ms'/>"
_SHORTEST_BREAK = 0.6  # s; longer than any pause within a sentence, shorter than what an echo leaves of a break
_LOUD = 60  # of 32768; echoes in a break stay below
_LEAD, _TAIL = 0.04, 0.10  # s kept before and after the loud part


@dataclass(frozen=True, order=True)
class Voice:
    """An espeak-ng voice with its settings: speed in words per minute, pitch 0 to 99."""

    name: str
    speed: int = 165
    pitch: int = 50


def espeak_version() -> str:
    """First words of `espeak-ng --version`, such as `1.51`.

    Raises:
        UserError: the program is missing or does not run.
    """
    if shutil.which("espeak-ng") is None:
        raise UserError(
            "the program espeak-ng, which generates the small world's audio, is not installed; "
            "install it with 'apt-get install espeak-ng' (Debian, Ubuntu) or 'brew install espeak-ng' (macOS)"
        )
    words = _run(["--version"]).decode(errors="replace").split()
    return next((word for word in words if word[0].isdigit()), "unknown")


def speak(sentences: list[str], voice: Voice) -> list[np.ndarray]:
    """Speaks sentences in one voice; the same list gives the same samples.

    Returns:
        One `(samples,) int16` at 16 kHz per sentence, with little silence around it.

    Raises:
        UserError: espeak-ng fails, or stays silent.
    """
    script = "<speak>" + f"{_BREAK}\n".join(escape(sentence) for sentence in sentences) + "</speak>"
    options = ["-m", "-b", "1", "-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch)]
    output = _run([*options, "--stdin", "--stdout"], script.encode())
    rate = int.from_bytes(output[24:28], "little")
    samples = np.frombuffer(output[44 : len(output) // 2 * 2], dtype="<i2")
    pieces = cut_at_breaks(samples, rate)
    if len(pieces) != len(sentences):
        if len(sentences) == 1:
            raise UserError(f"espeak-ng does not speak '{sentences[0]}' as one sentence in the voice {voice.name}")
        half = len(sentences) // 2
        return speak(sentences[:half], voice) + speak(sentences[half:], voice)
    return [_to_16_khz(piece, rate) for piece in pieces]


def speak_text(text: str, voice: Voice) -> np.ndarray:
    """Speaks any text as it stands, pauses included, with little silence around it; `(samples,) int16` at 16 kHz.

    Raises:
        UserError: espeak-ng fails, or has nothing to say.
    """
    options = ["-b", "1", "-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch)]
    output = _run([*options, "--stdin", "--stdout"], text.replace("\0", " ").encode("utf-8", "replace"))
    rate = int.from_bytes(output[24:28], "little")
    samples = np.frombuffer(output[44 : len(output) // 2 * 2], dtype="<i2")
    loud = np.flatnonzero((samples > _LOUD) | (samples < -_LOUD))
    if len(loud) == 0:
        raise UserError(f"espeak-ng has nothing to say of '{text:.200}' in the voice {voice.name}")
    first, last = loud[0] - round(_LEAD * rate), loud[-1] + round(_TAIL * rate)
    return _to_16_khz(samples[max(first, 0) : last], rate)


def cut_at_breaks(samples: np.ndarray, rate: int) -> list[np.ndarray]:
    """Cuts `samples: (n,) int16` at breaks, and leaves a little of the break around each piece."""
    loud = np.flatnonzero((samples > _LOUD) | (samples < -_LOUD))
    if len(loud) == 0:
        return []
    gaps = np.flatnonzero(np.diff(loud) > _SHORTEST_BREAK * rate)
    starts = loud[np.concatenate([[0], gaps + 1])] - round(_LEAD * rate)
    ends = loud[np.concatenate([gaps, [len(loud) - 1]])] + round(_TAIL * rate)
    return [samples[max(start, 0) : end] for start, end in zip(starts, ends, strict=True)]


def _to_16_khz(samples: np.ndarray, rate: int) -> np.ndarray:
    wave = soxr.resample(samples.astype(np.float32), rate, SAMPLE_RATE)
    clipped: np.ndarray = np.clip(np.round(wave), -32768, 32767).astype(np.int16)
    return clipped


def _run(arguments: list[str], text: bytes | None = None) -> bytes:
    try:
        done = subprocess.run(["espeak-ng", *arguments], input=text, capture_output=True, check=True, timeout=300)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip() or f"exit status {error.returncode}"
        raise UserError(f"espeak-ng failed: {said}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"espeak-ng cannot be run: {error}") from None
    return done.stdout
