"""Speech from espeak-ng and flite, called as programs.

espeak-ng speaks many sentences to a run, since starting it costs more than speaking; they are separated by a second of
silence and cut apart there. flite, whose voices are modelled on people's and far easier to understand, speaks one.
"""

import re
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


FLITE = "flite-"
_PROGRAMS = {
    "espeak-ng": "generates the audio of the small world's questions",
    "flite": "generates that of its answers",
}
"""Programs that are needed, and what each is for."""


@dataclass(frozen=True, order=True)
class Voice:
    """A voice of espeak-ng with its speed in words per minute and pitch from 0 to 99, or one of flite, as `flite-NAME`.

    Voices of flite speak at their own speed and pitch.
    """

    name: str
    speed: int = 165
    pitch: int = 50


def version_of(program: str) -> str:
    """Version of `espeak-ng` or `flite` as it tells it, such as `1.51`.

    Raises:
        UserError: the program is missing or does not run.
    """
    if shutil.which(program) is None:
        raise UserError(
            f"the program {program}, which {_PROGRAMS[program]}, is not installed; "
            f"install it with 'apt-get install {program}' (Debian, Ubuntu) or 'brew install {program}' (macOS)"
        )
    told = _run(program, ["--version"], check=False).decode(errors="replace")  # flite tells it with status 1
    found = re.search(r"(?:flite-|\s)(\d+\.\d[\w.]*)", told)
    return found[1] if found else "unknown"


def speak(sentences: list[str], voice: Voice) -> list[np.ndarray]:
    """Speaks sentences in one voice; the same list gives the same samples.

    Returns:
        One `(samples,) int16` at 16 kHz per sentence, with little silence around it.

    Raises:
        UserError: the program fails, or stays silent.
    """
    if voice.name.startswith(FLITE):
        return [_spoken_by_flite(sentence, voice) for sentence in sentences]
    script = "<speak>" + f"{_BREAK}\n".join(escape(sentence) for sentence in sentences) + "</speak>"
    options = ["-m", "-b", "1", "-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch)]
    samples, rate = _sound(_run("espeak-ng", [*options, "--stdin", "--stdout"], script.encode()))
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
    spoken = _run("espeak-ng", [*options, "--stdin", "--stdout"], text.replace("\0", " ").encode("utf-8", "replace"))
    return _trimmed(*_sound(spoken), f"espeak-ng has nothing to say of '{text:.200}' in the voice {voice.name}")


def _spoken_by_flite(sentence: str, voice: Voice) -> np.ndarray:
    options = ["-voice", voice.name.removeprefix(FLITE), "-t", sentence, "-o", "/dev/stdout"]
    return _trimmed(*_sound(_run("flite", options)), f"flite does not speak '{sentence}' in the voice {voice.name}")


def _sound(wav: bytes) -> tuple[np.ndarray, int]:
    """The samples of a WAV file as these programs write it, `(n,) int16`, and their rate."""
    return np.frombuffer(wav[44 : len(wav) // 2 * 2], dtype="<i2"), int.from_bytes(wav[24:28], "little")


def _trimmed(samples: np.ndarray, rate: int, silent: str) -> np.ndarray:
    """Samples with little silence around them, at 16 kHz; `silent` is what is wrong where there is nothing else."""
    loud = np.flatnonzero((samples > _LOUD) | (samples < -_LOUD))
    if len(loud) == 0:
        raise UserError(silent)
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


def _run(program: str, arguments: list[str], text: bytes | None = None, check: bool = True) -> bytes:
    try:
        done = subprocess.run([program, *arguments], input=text, capture_output=True, check=check, timeout=300)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip() or f"exit status {error.returncode}"
        raise UserError(f"{program} failed: {said}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{program} cannot be run: {error}") from None
    return done.stdout
