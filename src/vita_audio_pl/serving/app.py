"""The ASGI application: HTTP endpoints, the WebSocket, the page, and errors as sentences."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.websockets import WebSocketDisconnect

from vita_audio_pl.errors import UserError
from vita_audio_pl.serving.endpoints import Endpoints
from vita_audio_pl.serving.engine import Busy, Lost
from vita_audio_pl.serving.gate import Gate, error_body, key_of
from vita_audio_pl.serving.realtime import Session
from vita_audio_pl.serving.requests import sentence_of
from vita_audio_pl.serving.service import Service

_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "worklets.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
_FAREWELL = 5.0  # seconds
_LOG = logging.getLogger("vita_audio_pl.serving")
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # who sent a broken form is told; the log is not


def create_app(service: Service) -> FastAPI:
    """Build the application of a service; it closes the service when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="Vita-Audio-PL", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.include_router(Endpoints(service).router)
    config = service.config
    loopback = not service.keys
    app.add_middleware(
        Gate,
        keys=service.keys,
        origins=config.origins,
        loopback=loopback,
        most_bytes=config.limits.message_bytes,
    )
    if config.origins:  # around the gate, so that a page of these origins can read why it was refused
        app.add_middleware(
            CORSMiddleware, allow_origins=config.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)
    page = files("vita_audio_pl.serving") / "page"
    shown = {name: (page / name).read_bytes() for name in _PAGE}

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index() -> Response:
        return Response(shown["index.html"], media_type=_PAGE["index.html"], headers=_HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in shown:
            raise HTTPException(404)
        return Response(shown[name], media_type=_PAGE[name], headers=_HEADERS)

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await Connection(service, socket).run()

    return app


class Connection:
    """One WebSocket: a reader, and a sender, so that a slow client delays only itself."""

    def __init__(self, service: Service, socket: WebSocket):
        self._service, self._socket = service, socket
        self._out: asyncio.Queue[tuple[str, str | None] | None] = asyncio.Queue()
        self._unread = 0
        self._gone = False  # the client no longer reads
        self._forgotten: set[str] = set()
        self._session: Session | None = None
        self._told_to_end = asyncio.Event()
        self._why = (1000, "")

    @property
    def busy(self) -> bool:
        """Whether an answer is in progress, or not completely sent."""
        answering = self._session is not None and self._session.answering
        return answering or (self._unread > 0 and not self._gone)

    def end(self, code: int, reason: str) -> None:
        """Close it soon."""
        self._why = code, reason
        self._told_to_end.set()

    async def run(self) -> None:
        """Serve the client until it leaves, or the connection is closed."""
        service, limits = self._service, self._service.config.limits
        client = self._client()
        asked = self._socket.headers.get("sec-websocket-protocol", "").replace(" ", "").split(",")
        await self._socket.accept("realtime" if "realtime" in asked else None)
        own = service.sessions.get(client, 0)
        message = None
        if service.draining:
            message = f"the server is ending; try again in {service.config.drain_seconds:.0f} s"
        elif own >= limits.sessions_a_client:
            message = (
                f"{own} of your sessions are open, all that limits.sessions_a_client allows; close one and try again"
            )
        elif sum(service.sessions.values()) >= limits.sessions:
            wait = service.engine.wait_seconds()
            message = f"all {limits.sessions} sessions are taken (limits.sessions); try again in {wait:.0f} s"
        if message is not None:
            body = error_body(message, "server_error", "rate_limit_exceeded")
            await self._socket.send_json({"type": "error", "event_id": "event_0", **body})
            await self._socket.close(1013, message)
            return
        service.sessions[client] = service.sessions.get(client, 0) + 1
        session = self._session = Session(service, self._send, self._forgotten.add)
        sender = asyncio.create_task(self._send_all())
        service.connections.add(self)
        try:
            session.begin()
            await self._read_all(session, limits.idle_seconds)
        finally:
            service.sessions[client] -= 1
            if not service.sessions[client]:
                del service.sessions[client]
            await session.close()
            service.connections.discard(self)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _read_all(self, session: Session, idle_seconds: float) -> None:
        while True:
            reading = asyncio.create_task(self._socket.receive())
            ending = asyncio.create_task(self._told_to_end.wait())
            done, others = await asyncio.wait((reading, ending), timeout=idle_seconds, return_when="FIRST_COMPLETED")
            for task in others:
                task.cancel()
            if ending in done:
                await self._leave(*self._why)
                return
            if reading not in done:
                await self._leave(1000, f"nothing came for {idle_seconds:g} s")
                return
            message = reading.result()
            if message["type"] == "websocket.disconnect":
                return
            said = message.get("text") or message.get("bytes") or ""
            if len(said) > self._service.config.limits.message_bytes:  # for servers in front that do not count
                await self._leave(1009, "the message is larger than what is taken")
                return
            try:
                await session.take(said)
            except Exception:  # a bug: this session continues, and others do not notice
                _LOG.exception("a message could not be handled")
                body = error_body("this message met a fault of the server; its log says more", "server_error", "fault")
                self._send(json.dumps({"type": "error", "event_id": "event_0", **body}), None)

    async def _leave(self, code: int, reason: str) -> None:
        with suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
            async with asyncio.timeout(_FAREWELL):  # one that does not read takes no farewell either
                await self._socket.close(code, reason)

    def _send(self, text: str, answer: str | None) -> None:
        self._unread += len(text)
        if self._unread > self._service.config.limits.unread_bytes:
            self.end(1008, "too much was left unread")
            return
        self._out.put_nowait((text, answer))

    async def _send_all(self) -> None:
        while (message := await self._out.get()) is not None:
            text, answer = message
            try:
                if answer is None or answer not in self._forgotten:
                    await self._socket.send_text(text)
            except (RuntimeError, WebSocketDisconnect):
                self._gone = True  # the reader hears of it, too
                return
            finally:
                self._unread -= len(text)

    def _client(self) -> str:
        if (key := key_of(self._socket.scope)) is not None:
            return key
        return self._socket.client.host if self._socket.client is not None else "unknown"


async def _user_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, Busy):
        headers = {"retry-after": f"{error.seconds:.0f}"}
        return JSONResponse(error_body(str(error), "server_error", "rate_limit_exceeded"), 429, headers)
    if isinstance(error, Lost):
        return JSONResponse(error_body(str(error), "server_error"), 503)
    return JSONResponse(error_body(str(error)), 400)


async def _not_valid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse(error_body(sentence_of(error.errors())), 400)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    taken = (error.headers or {}).get("Allow", "other methods")
    message = {404: "there is nothing at this address", 405: f"this address takes {taken}"}.get(error.status_code)
    return JSONResponse(error_body(message or str(error.detail)), error.status_code, error.headers)


async def _fault(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body("the server met a fault; its log says more", "server_error"), 500)
