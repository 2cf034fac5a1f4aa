"""The server process: load the model, listen, and shut down without cutting answers."""

import errno
import logging
import os
import signal
import socket
import ssl
import sys
from typing import Any

import torch
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.answering import codec_of
from vita_audio_pl.inference.kernels import check_kernels
from vita_audio_pl.inference.loading import ModelDescription
from vita_audio_pl.serving.app import create_app
from vita_audio_pl.serving.gate import LOOPBACK
from vita_audio_pl.serving.links import ProcessLink, ThreadLink, load_served
from vita_audio_pl.serving.service import Service
from vita_audio_pl.serving.settings import ServeConfig
from vita_audio_pl.storage.model_folders import find_model

_WAITING = 2048  # connections that wait to be taken, uvicorn's own number


def run(config: ServeConfig) -> None:
    """Serve until a signal.

    Raises:
        UserError: the model cannot be loaded or served, or the address is not available.
    """
    check_tls(config)
    sockets = bound(config)
    service = load_service(config)
    try:
        for address in sockets:
            address.listen(_WAITING)
    except OSError as error:  # another server that bound the address, too, listened while the model was loaded
        raise _not_usable(config, error) from None
    server = DrainingServer(server_config(service), service)
    try:
        server.run(sockets)
    finally:
        service.close()  # a server that is ended at once has not
    if server.lost:
        raise UserError(f"the process that decodes has ended ({server.lost}), so the server ends; start it again")
    if server.force_exit:
        raise SystemExit(128 + signal.SIGINT)


def load_service(config: ServeConfig) -> Service:
    """The model and its workers."""
    check_kernels(config.kernels, config.verify, config.sampling, config.device)
    torch.set_num_threads(config.threads)
    find_model(config.model, config.paths.runs)  # before a process is started to load it
    described: ModelDescription
    link: ThreadLink | ProcessLink
    if config.device == "cpu" if config.decoding_process is None else config.decoding_process:
        link = ProcessLink(config)
        described = link.facts
    else:
        described = loaded = load_served(config)
        link = ThreadLink(loaded, config)
    try:
        return Service(described, codec_of(described, config.device), config, link)
    except BaseException:
        link.stop()
        raise


def check_tls(config: ServeConfig) -> None:
    """Try the TLS files before a large model is loaded.

    Raises:
        UserError: they cannot be read or do not match.
    """
    if config.tls_certificate and config.tls_key:
        try:
            # the password is asked for nowhere: a server that starts unattended has nobody to ask
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_certificate, config.tls_key, lambda: "")
        except (OSError, ValueError) as error:  # ssl.SSLError among them
            raise UserError(
                f"tls_certificate={config.tls_certificate} and tls_key={config.tls_key} cannot be used: {error}; give a PEM "
                "certificate and its own key, without a password"
            ) from None


def bound(config: ServeConfig) -> list[socket.socket]:
    """Sockets with the address, before a large model is loaded; nobody is let in until they listen.

    Raises:
        UserError: the address is none, taken, or not of this machine.
    """
    if not config.host:
        raise UserError("host is empty: give the address to listen on, 0.0.0.0 for all, or leave it out for localhost")
    sockets: list[socket.socket] = []
    try:
        places = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
        for number, (family, kind, _, _, address) in enumerate(places):
            try:
                sockets.append(_bound(family, kind, address))
            except OSError as error:
                # a name that has an address of IPv6 on a machine without it; the last one has to be there
                without = family == socket.AF_INET6 and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
                if not without or (number == len(places) - 1 and not sockets):
                    raise
    except OSError as error:
        for taken in sockets:
            taken.close()
        raise _not_usable(config, error) from None
    return sockets


def _bound(family: int, kind: int, address: Any) -> socket.socket:
    made = socket.socket(family, kind)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # so that the same port of IPv4 is another address
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _not_usable(config: ServeConfig, error: OSError) -> UserError:
    why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return UserError(f"{config.host}:{config.port} cannot be used ({why}); give another port=... or host=...")


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's own, but for two things.

    It calls a handshake that was answered with an HTTP status incomplete, and logs an error. And it closes a connection once all is
    read, so it keeps one whose client never reads.
    """

    async def run_asgi(self) -> None:
        await super().run_asgi()
        if not self.writable.is_set():
            self.transport.abort()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True


def server_config(service: Service) -> uvicorn.Config:
    """uvicorn's configuration for a service."""
    config = service.config
    return uvicorn.Config(
        create_app(service),
        host=config.host,
        port=config.port,
        ws=_WebSocketProtocol,
        ws_max_size=config.limits.message_bytes,
        ws_per_message_deflate=False,
        ssl_certfile=config.tls_certificate,
        ssl_keyfile=config.tls_key,
        timeout_graceful_shutdown=5,
        log_level="warning",
        access_log=False,
    )


def listening(config: ServeConfig, name: str, port: int) -> str:
    """The message when the server is ready."""
    scheme = "https" if config.tls_certificate else "http"
    host = {"127.0.0.1": "localhost", "0.0.0.0": "localhost"}.get(config.host, config.host)
    return f"{name} listens on {scheme}://{host}:{port} (page) and /v1 (protocols)"


class DrainingServer(uvicorn.Server):
    """A server that, when it is asked to stop, accepts no new answers and lets those in progress finish."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service
        self.lost = ""  # how the process that decodes ended, if it did before the server

    @property
    def port(self) -> int:
        """The port that it listens on, once it has started."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM and Ctrl-C are the normal ways to stop a server: exit status 0; a second Ctrl-C ends answers, too."""
        if sig not in (signal.SIGTERM, signal.SIGINT):
            super().handle_exit(sig, frame)
            return
        if sig == signal.SIGINT and not self.should_exit and self._service.busy:
            print(
                "the answers in progress are finished first; Ctrl-C once more ends at once", file=sys.stderr, flush=True
            )
        if sig == signal.SIGINT and self.should_exit:
            self.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # clients are cut off on purpose: no tracebacks of that
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(listening(self._service.config, self._service.name, self.port), flush=True)
            if self._service.capacity < self._service.config.context_tokens:
                print(
                    f"conversations have {self._service.capacity} tokens at most, all positions of the model, though "
                    f"context_tokens={self._service.config.context_tokens}",
                    file=sys.stderr,
                    flush=True,
                )
            if self._service.config.host not in LOOPBACK and not self._service.keys:
                print(
                    "without keys, the server answers to the name localhost alone, which others can claim, too; "
                    "for other machines give api_keys=FILE, tls_certificate=FILE and tls_key=FILE",
                    file=sys.stderr,
                    flush=True,
                )

    async def on_tick(self, counter: int) -> bool:
        """Also end where nothing can be decoded any more, so that whoever watches starts another."""
        ending = await super().on_tick(counter)
        if not ending and not self._service.engine.alive:
            self.lost = self._service.engine.link.ending
            ending = self.should_exit = True
        return ending

    async def shutdown(self, sockets: Any = None) -> None:
        await self._service.drain(lambda: self.force_exit)
        await super().shutdown(sockets)
