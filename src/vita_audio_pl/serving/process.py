"""The server process: load the model, listen, and shut down without cutting answers."""

import signal
from typing import Any

import torch
import uvicorn

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.answering import codec_of
from vita_audio_pl.inference.loading import load_speech_model
from vita_audio_pl.serving.app import create_app
from vita_audio_pl.serving.service import Service
from vita_audio_pl.serving.settings import ServeConfig


def run(config: ServeConfig) -> None:
    """Serve until a signal.

    Raises:
        UserError: the model cannot be loaded or served, or the address is not available.
    """
    service = load_service(config)
    server = DrainingServer(server_config(service), service)
    try:
        server.run()
    except SystemExit:  # raised by uvicorn, after it has printed why
        raise UserError(f"{config.host}:{config.port} cannot be used; give another port=... or host=...") from None


def load_service(config: ServeConfig) -> Service:
    """The model and its workers."""
    torch.set_num_threads(config.threads)
    loaded = load_speech_model(
        config.model,
        device=config.device,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        codec_folder=config.codec_folder,
        encoder_folder=config.encoder_folder,
        runs=config.paths.runs,
        kernels=config.kernels,
    )
    return Service(loaded, codec_of(loaded, config.device), config)


def server_config(service: Service) -> uvicorn.Config:
    """uvicorn's configuration for a service."""
    config = service.config
    return uvicorn.Config(
        create_app(service),
        host=config.host,
        port=config.port,
        ws="websockets-sansio",
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

    @property
    def port(self) -> int:
        """The port that it listens on, once it has started."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM is the normal way to stop a server: exit status 0."""
        if sig == signal.SIGTERM and not self.should_exit:
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(listening(self._service.config, self._service.name, self.port), flush=True)

    async def shutdown(self, sockets: Any = None) -> None:
        await self._service.drain(lambda: self.force_exit)
        await super().shutdown(sockets)
