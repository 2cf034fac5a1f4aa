"""Access control: origins, hosts, keys and sizes, checked before any endpoint sees a request."""

import hmac
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.exceptions import HTTPException

Scope = Mapping[str, Any]
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
KEY_PROTOCOL = "openai-insecure-api-key."
"""Prefix of the WebSocket subprotocol in which pages, which cannot set headers, send a key (as with OpenAI)."""
_OPEN = ("/", "/health")
_KEY = "vita_audio_pl.key"


def error_body(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def key_of(scope: Scope) -> str | None:
    """The accepted key that a request showed; None if none was asked for."""
    found: str | None = scope.get(_KEY)
    return found


class Gate:
    """ASGI middleware; says in the scope which key was shown (`key_of`).

    Args:
        app: the protected application.
        keys: accepted API keys; empty = none required.
        origins: other web origins that may call.
        loopback: whether no host name except localhost is accepted, so that no page elsewhere can reach a server
            without keys under another name.
        most_bytes: largest body.
    """

    def __init__(self, app: Any, keys: Iterable[str], origins: Iterable[str], loopback: bool, most_bytes: int):
        self._app, self._keys = app, tuple(key.encode() for key in keys)
        self._origins, self._loopback, self._most = frozenset(origins), loopback, most_bytes

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        key = self._shown(headers)
        refusal = self._refusal(scope, headers, key)
        if refusal is not None:
            await _refuse(scope, send, *refusal)
            return
        limited = receive if scope["type"] == "websocket" else _Limited(receive, self._most)
        await self._app({**scope, _KEY: key}, limited, send)

    def _refusal(self, scope: Scope, headers: Mapping[str, str], key: str | None) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._loopback and _host(f"//{host}") not in LOOPBACK:
            return (
                403,
                "this server is called localhost; reach it through an ssh tunnel, or set host=0.0.0.0 and api_keys=FILE",
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and urlsplit_safe(origin) != host:
            return 403, "pages of this origin may not call; the setting origins lists those that may"
        public = scope["path"] in _OPEN or scope["path"].startswith("/page/")
        if self._keys and not public and key is None:
            return 401, "a key is needed: Authorization: Bearer KEY"
        if not re.fullmatch(r"\d{1,15}", headers.get("content-length", "0")):
            return 400, "content-length is not a number"
        if int(headers.get("content-length", "0")) > self._most:
            return 413, f"the request is larger than the {self._most} bytes that are taken"
        return None

    def _shown(self, headers: Mapping[str, str]) -> str | None:
        """The accepted key that the headers show."""
        shown = [re.sub(r"(?i)^bearer\s", "", headers.get("authorization", "").strip()).strip()]
        for protocol in headers.get("sec-websocket-protocol", "").split(","):
            if protocol.strip().startswith(KEY_PROTOCOL):
                # the page encodes what a protocol's name may not hold, such as the signs of base64; other clients do not
                sent = protocol.strip().removeprefix(KEY_PROTOCOL)
                shown += [sent, unquote(sent)]
        # all keys are compared, so that the time taken reveals nothing
        tried = [one.encode("utf-8", "replace") for one in shown]
        found = [key for key in self._keys if any([hmac.compare_digest(one, key) for one in tried])]
        return found[0].decode() if found else None


class TooLarge(HTTPException):
    """A body exceeded its limit."""

    def __init__(self) -> None:
        super().__init__(413, "the request is larger than what is taken")


class _Limited:
    """Counts the bytes of a body, for requests without a length."""

    def __init__(self, receive: Any, most: int):
        self._receive, self._left = receive, most

    async def __call__(self) -> Any:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise TooLarge
        return message


async def _refuse(scope: Scope, send: Any, status: int, message: str) -> None:
    body = json.dumps(error_body(message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
    elif "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": message[:120]})


def urlsplit_safe(origin: str) -> str | None:
    """Host and port of an origin; None if it is invalid."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
