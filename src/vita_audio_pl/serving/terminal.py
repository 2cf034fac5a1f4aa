"""The terminal client: recordings or text as turns, or a conversation by microphone."""

import base64
import json
import logging
import os
import queue
import ssl
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import connect
from websockets.uri import parse_uri

from vita_audio_pl.codecs.audio import read_audio, wav_file, write_wav
from vita_audio_pl.errors import UserError
from vita_audio_pl.serving.pcm import OUTPUT_RATE, from_pcm16, to_pcm16
from vita_audio_pl.serving.settings import KEYS_VARIABLE, TalkConfig

_PIECE = OUTPUT_RATE // 10


def run(config: TalkConfig) -> None:
    """Send the configured turns; without any, use the microphone.

    Raises:
        UserError: the server is unreachable or refuses, a recording is unreadable, or there is no microphone. What was
            answered until then is in the output.
    """
    try:
        parse_uri(config.url)
    except (InvalidURI, ValueError) as error:  # ValueError: its port is none
        why = error.msg if isinstance(error, InvalidURI) else error
        raise UserError(
            f"url={config.url} is no address ({why}); give one such as ws://localhost:8000/v1/realtime"
        ) from None
    waves = [read_audio(path, OUTPUT_RATE) for path in config.audio]
    by_microphone = not waves and config.text is None
    devices = _sound_devices() if by_microphone else None
    if not by_microphone:
        wav_file(config.output, config.audio)
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # what goes wrong is said below, in a sentence
    key = config.key or os.environ.get(KEYS_VARIABLE, "").split(",")[0].strip()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with connect(config.url, additional_headers=headers, max_size=None) as socket:
            detection = {"type": "server_vad"} if by_microphone else None
            session = {
                "type": "realtime",
                "decoding": {"mode": config.mode, "verify": config.verify},
                "audio": {"input": {"turn_detection": detection}},
            }
            _send(socket, type="session.update", session=session)
            if devices is not None:
                _Microphone(socket, devices).run()
                return
            _say_all(socket, waves, config)
    except InvalidStatus as error:
        raise UserError(f"{config.url} refused the conversation: {_refusal(error)}") from None
    except ssl.SSLCertVerificationError as error:
        raise UserError(
            f"{config.url} has a certificate that is not trusted here: {error.verify_message}; "
            "give the environment variable SSL_CERT_FILE=FILE, the certificate itself if it is self-signed"
        ) from None
    except (OSError, InvalidHandshake) as error:
        raise UserError(f"{config.url} cannot be reached: {error}; is the server running?") from None
    except WebSocketException as error:
        raise UserError(f"the server closed the conversation: {error}") from None


def _refusal(error: InvalidStatus) -> str:
    """The server's own sentence, if it has one."""
    try:
        return str(json.loads(error.response.body)["error"]["message"])
    except (ValueError, TypeError, LookupError):
        return f"HTTP {error.response.status_code}; the address of a server of this project ends in /v1/realtime"


def _say_all(socket: Any, waves: list[NDArray[np.float32]], config: TalkConfig) -> None:
    sound: list[NDArray[np.float32]] = []
    try:
        for wave in waves:
            data = to_pcm16(wave)
            for start in range(0, len(data), 2 * _PIECE):
                piece = base64.b64encode(data[start : start + 2 * _PIECE]).decode()
                _send(socket, type="input_audio_buffer.append", audio=piece)
            _send(socket, type="input_audio_buffer.commit")
            _answer(socket, sound, config.output)
        if config.text is not None:
            content = [{"type": "input_text", "text": config.text}]
            _send(socket, type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
            _answer(socket, sound, config.output)
    finally:
        if sound:
            print(f"{sum(map(len, sound)) / OUTPUT_RATE:.2f} s of speech in {config.output}", file=sys.stderr)


def _answer(socket: Any, sound: list[NDArray[np.float32]], output: str) -> None:
    """Request an answer, show its text, add its audio to `sound`, and write all of that, also where it is cut off."""
    _send(socket, type="response.create")
    try:
        while True:
            event = json.loads(socket.recv())
            if event["type"] == "response.output_audio.delta":
                sound.append(from_pcm16(base64.b64decode(event["delta"])))
            elif _show(event):
                return
    finally:
        if sound:
            try:
                write_wav(output, np.concatenate(sound), OUTPUT_RATE)
            except OSError as error:
                sound.clear()
                raise UserError(f"output={output} cannot be written: {error.strerror or error}") from None


def _show(event: dict[str, Any]) -> bool:
    """Show an event's text; returns whether an answer has ended.

    Raises:
        UserError: the server refused something.
    """
    kind = event["type"]
    if kind in ("response.output_audio_transcript.delta", "response.output_text.delta"):
        print(event["delta"], end="", flush=True)
    elif kind == "error":
        raise UserError(event["error"]["message"])
    elif kind == "response.done":
        details = event["response"].get("status_details") or {}
        if event["response"]["status"] == "failed":
            raise UserError(details["error"]["message"])
        print()
        return True
    return False


class _Microphone:
    """A conversation by microphone and loudspeaker; the answer is interrupted when somebody speaks.

    A terminal has no echo cancellation: with loudspeakers, the answer may interrupt itself. Use headphones.
    """

    def __init__(self, socket: Any, devices: Any):
        self._socket, self._devices = socket, devices
        self._heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._sound = bytearray()  # waiting to be played
        self._played = 0  # samples of the answer in progress
        self._item: str | None = None

    def run(self) -> None:
        sizes = {"samplerate": OUTPUT_RATE, "channels": 1, "dtype": "int16", "blocksize": _PIECE // 2}
        print("Speak; Ctrl-C ends. Headphones keep the answer out of the microphone.", file=sys.stderr)
        with (
            self._devices.RawInputStream(callback=self._hear, **sizes),
            self._devices.RawOutputStream(callback=self._play, **sizes),
        ):
            threading.Thread(target=self._send_all, daemon=True).start()
            while True:
                self._take(json.loads(self._socket.recv()))

    def _take(self, event: dict[str, Any]) -> None:
        if event["type"] == "response.output_audio.delta":
            with self._lock:
                if event["item_id"] != self._item:
                    self._item, self._played = event["item_id"], 0
                self._sound += base64.b64decode(event["delta"])
        elif event["type"] == "input_audio_buffer.speech_started":
            with self._lock:
                item, heard, waiting = self._item, self._played, bool(self._sound)
                self._sound.clear()
                self._item = None
            if item is not None and waiting:
                cut = {"item_id": item, "content_index": 0, "audio_end_ms": 1000 * heard // OUTPUT_RATE}
                _send(self._socket, type="conversation.item.truncate", **cut)
        else:
            _show(event)

    def _hear(self, data: Any, *_: Any) -> None:
        self._heard.put(bytes(data))

    def _play(self, out: Any, *_: Any) -> None:
        with self._lock:
            piece = bytes(self._sound[: len(out)])
            del self._sound[: len(out)]
            self._played += len(piece) // 2
        out[:] = piece + bytes(len(out) - len(piece))

    def _send_all(self) -> None:
        try:
            while True:
                _send(
                    self._socket, type="input_audio_buffer.append", audio=base64.b64encode(self._heard.get()).decode()
                )
        except WebSocketException:
            return  # the reader reports why


def _sound_devices() -> Any:
    try:
        import sounddevice

        sounddevice.check_input_settings(samplerate=OUTPUT_RATE, channels=1)
    except ImportError:
        raise UserError(
            "the microphone needs sounddevice: pip install sounddevice; or give audio=[FILE] or text=..."
        ) from None
    except Exception as error:  # PortAudio's own exception, or its library is missing
        raise UserError(f"there is no microphone to use ({error}); give audio=[FILE] or text=...") from None
    return sounddevice


def _send(socket: Any, **event: Any) -> None:
    socket.send(json.dumps(event))
