"""A voice behind HTTP: `POST /v1/audio/speech`, as offered by OpenAI, our own `serve` and most open TTS servers."""

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np

from vita_audio_pl.config.fields import setting
from vita_audio_pl.data.readers.base import LeftOut
from vita_audio_pl.data.speaking.voices import NOT_SPOKEN, Voice, VoiceSettings, decoded
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.remote_file import Unreachable

_PATH = "/audio/speech"
_LARGEST = 256 << 20  # bytes of an answer
_LONGEST_WAIT = 60.0  # seconds between two tries
_LATER, _OF_THIS_TEXT = (408, 425, 429, 502, 503, 504), (400, 413, 415, 422)  # status codes


@dataclass
class Endpoint(VoiceSettings):
    """A TTS server. Its key is in the environment variable `key_variable`, and is never written anywhere."""

    url: str = setting(meaning="address of the server up to /v1, such as http://localhost:8000/v1", address=True)
    model: str = setting("", "name of the model the server is asked for; empty = none is named")
    voice: str = setting("", "name of the voice the server is asked for; empty = its own")
    speed: float = setting(1.0, "rate of speech the server is asked for; 1 = its usual one", above=0)
    instructions: str = setting("", "how to speak, for models that take instructions")
    response_format: str = setting("wav", "audio format the server sends", choices=("wav", "flac", "mp3", "opus"))
    key_variable: str = setting(
        "", "environment variable that holds the key, such as OPENAI_API_KEY; empty = no key is sent"
    )
    name: str = setting(
        "", "what shards and data cards call the server; empty = its URL, so that a move speaks all again"
    )
    timeout_seconds: float = setting(120.0, "longest time to wait for one text, in seconds", above=0)
    tries: int = setting(6, "attempts for a text while the server is busy or away", at_least=1)

    def check(self) -> None:
        """Refuse an invalid address, and a missing key.

        Raises:
            UserError: which of them.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("tts.url is not the address of a server: give http://HOST:PORT/v1")
        if "@" in parts.netloc or parts.query:
            raise UserError("tts.url holds a name or a key: put it into the environment, and say tts.key_variable=NAME")
        if self.key_variable and not self._key:
            raise UserError(f"tts.key_variable: there is no environment variable {self.key_variable}, or it is empty")
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(
                f"tts.key_variable: {self.key_variable} holds a line break or another character that no key has: set it again"
            )

    def build(self) -> Voice:
        return _Endpoint(self, self._key)

    @property
    def _key(self) -> str:
        # as `export KEY=$(cat FILE)` of a file from another system leaves it
        return os.environ.get(self.key_variable, "").strip() if self.key_variable else ""

    def facts(self) -> dict[str, Any]:
        asked = {"model": self.model, "voice": self.voice, "speed": self.speed, "instructions": self.instructions}
        return {"kind": "endpoint", "name": self.name or self.url, **asked, "format": self.response_format}

    @property
    def address(self) -> str:
        """URL that texts are sent to."""
        base = self.url.rstrip("/")
        return base if base.endswith(_PATH) else base + _PATH


class _NoRedirects(HTTPRedirectHandler):
    """A redirected request would become a GET, and reveal the key to another server."""

    def redirect_request(self, *request: Any) -> None:
        return None


class _Endpoint:
    def __init__(self, settings: Endpoint, key: str, sleep: Callable[[float], None] = time.sleep):
        self._settings, self._key, self._sleep = settings, key, sleep
        self._open = build_opener(_NoRedirects).open

    def speak(self, text: str) -> tuple[np.ndarray, int]:
        asked = {
            "model": self._settings.model,
            "input": text,
            "voice": self._settings.voice,
            "response_format": self._settings.response_format,
            "instructions": self._settings.instructions,
        }
        body: dict[str, Any] = {name: value for name, value in asked.items() if value}
        if self._settings.speed != 1:
            body["speed"] = self._settings.speed
        return decoded(self._post(json.dumps(body).encode()), self._settings.address)

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        problem, broken = "", False
        for number in range(self._settings.tries):
            wait = min(0.5 * 2**number, _LONGEST_WAIT)
            try:
                request = Request(self._settings.address, body, headers)
                with self._open(request, timeout=self._settings.timeout_seconds) as answer:
                    data: bytes = answer.read(_LARGEST + 1)
                    missing = answer.length  # of a body that says how long it is
                if missing and len(data) <= _LARGEST:
                    raise IncompleteRead(data, missing)
                if len(data) > _LARGEST:
                    raise LeftOut(NOT_SPOKEN, f"{self._settings.address} answers with more than {_LARGEST} bytes")
                return data
            except HTTPError as error:
                problem, broken = f"{error.code} {error.reason}: {self._told(error)}", error.code not in _LATER
                if error.code in _OF_THIS_TEXT:
                    raise LeftOut(NOT_SPOKEN, f"{self._settings.address} answers {problem}") from None
                if error.code < 500 and broken:  # no key, no such model: fails for every text
                    raise Unreachable(errno.ENOTCONN, problem, self._settings.address) from None
                wait = _seconds(error.headers.get("Retry-After"), wait)
            except ValueError as error:  # an invalid header or address; its text may contain the key
                problem = f"the request cannot be sent ({type(error).__name__}): look at tts.url and at the key"
                raise Unreachable(errno.ENOTCONN, problem, self._settings.address) from None
            except (HTTPException, URLError, OSError) as error:
                problem, broken = str(getattr(error, "reason", "") or error) or type(error).__name__, False
            if number + 1 < self._settings.tries:
                self._sleep(wait)
        if broken:  # the server is available but always fails for this text
            raise LeftOut(NOT_SPOKEN, f"{self._settings.address} answers {problem}")
        raise Unreachable(errno.ENOTCONN, problem, self._settings.address)

    def _told(self, error: HTTPError) -> str:
        """Error message in a response, without the key, which some servers repeat."""
        try:
            told = error.read(2000).decode(errors="replace")
        except (HTTPException, OSError):
            return ""
        return " ".join((told.replace(self._key, "KEY") if self._key else told).split())[:300]


def _seconds(told: str | None, otherwise: float) -> float:
    try:
        return min(max(float(told or ""), 0.0), _LONGEST_WAIT)
    except ValueError:
        return otherwise
