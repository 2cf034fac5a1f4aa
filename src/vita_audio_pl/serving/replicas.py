"""Several replicas of a server behind one address, with Ray Serve: each has the model, its slots and its sessions.

A WebSocket, and so a conversation, stays in the replica that accepted it. HTTP requests go to the least busy one; if it
does not know the answer that a request names by its audio's id, it asks the other replicas (`Service.remembered`), so
that clients need no session affinity.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import Item
from vita_audio_pl.serving.app import create_app
from vita_audio_pl.serving.metrics import Family
from vita_audio_pl.serving.process import listening, load_service
from vita_audio_pl.serving.settings import ServeConfig

_NAME = "vita_audio_pl"
_SPARE = 100
"""Requests in addition to those that the server's own limits count, such as /health; more wait in Ray's proxy."""


_ANSWERS_WITHIN = 5.0  # seconds


class Replica:
    """One server, in a process of its own that Ray Serve starts; exceptions must end it with a sentence."""

    def __init__(self, config: ServeConfig):
        self._service, self._refusal = None, ""
        try:
            self._service = load_service(config)
        except UserError as error:
            self._refusal = str(error)
            return
        self._service.replicas = _Replicas()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return FastAPI() if self._service is None else create_app(self._service)

    def check_health(self) -> None:
        """Ray Serve replaces a replica that raises; one that cannot serve stays healthy until `began` has reported why."""
        if self._service is not None and not self._service.engine.alive:
            raise RuntimeError("the engine has ended")

    async def began(self) -> tuple[str, str]:
        """The model's name, and why it cannot be served (empty if it can)."""
        return ("" if self._service is None else self._service.name), self._refusal

    async def spoken(self, audio_id: str) -> Item | None:
        """An answer that this replica gave."""
        return None if self._service is None else self._service.spoken.get(audio_id)

    async def counts(self) -> tuple[str, list[Family]]:
        """The replica's name and its metrics."""
        from ray import serve

        families = [] if self._service is None else self._service.metrics.families()
        return serve.get_replica_context().replica_id.unique_id, families

    async def drain(self) -> None:
        """See `Service.drain`."""
        if self._service is not None:
            await self._service.drain()


class _Replicas:
    """All replicas, as seen from one of them."""

    async def remembered(self, audio_id: str) -> Item | None:
        found = await self._ask("spoken", audio_id)
        return next((item for item in found if isinstance(item, Item)), None)

    async def counts(self) -> Mapping[str, list[Family]]:
        return dict(await self._ask("counts"))

    async def _ask(self, method: str, *values: Any) -> list[Any]:
        from ray import serve

        handle = serve.get_deployment_handle(_NAME, _NAME)
        try:
            found = await handle.broadcast(method, *values).results_async(
                timeout_s=_ANSWERS_WITHIN, return_exceptions=True
            )
        except TimeoutError:
            return []
        return [one for one in found if not isinstance(one, BaseException)]  # those that die or hang report nothing


def run(config: ServeConfig) -> None:
    """Serve with `config.replicas` replicas until a signal.

    Raises:
        UserError: Ray is missing or does not start, the model cannot be served, or the address is not available.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise UserError(f"several replicas need {error.name}: pip install 'vita-audio-pl[ray,serve]'") from None
    port = _free_port(config)
    processors = max(os.cpu_count() or 1, config.replicas * config.threads)
    try:
        ray.init(
            address="local",
            num_cpus=processors,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises exceptions of its own
        raise UserError(f"Ray did not start: {error}; rerun the command, or replicas=1") from error
    try:
        gpus = config.replicas if config.device == "cuda" else 0
        if ray.cluster_resources().get("GPU", 0) < gpus:
            found = int(ray.cluster_resources().get("GPU", 0))
            raise UserError(f"each replica needs a GPU, and there are {found}; give replicas={max(found, 1)}")
        handle = _deploy(serve, config, port)
        names, refusals = zip(*handle.broadcast("began").results(), strict=True)
        if any(refusals):
            raise UserError(next(filter(None, refusals)))
        told = _signals()
        print(f"{listening(config, names[0], port)}, {config.replicas} replicas", flush=True)
        told.wait()
        handle.broadcast("drain").results(return_exceptions=True)
    finally:
        serve.shutdown()
        ray.shutdown()


def _deploy(serve: Any, config: ServeConfig, port: int) -> Any:
    """Start the replicas; returns a handle to them."""
    options = {"num_cpus": config.threads, "num_gpus": int(config.device == "cuda")}
    limits = config.limits
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=_NAME,
        num_replicas=config.replicas,
        ray_actor_options=options,
        # the server itself refuses excess requests, with a sentence
        max_ongoing_requests=limits.sessions + config.slots + limits.queue + _SPARE,
        max_constructor_retry_count=1,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
    )
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    files = {"ssl_certfile": config.tls_certificate, "ssl_keyfile": config.tls_key} if config.tls_key else {}
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location="HeadOnly", http_options={"host": config.host, "port": port, **files}, logging_config=quiet
    )
    return serve.run(deployment.bind(config), name=_NAME, route_prefix="/", logging_config=quiet)


def _signals() -> threading.Event:
    """Set by SIGTERM or Ctrl-C from now on; the next signal also ends the wait for answers."""
    told = threading.Event()

    def tell(*_: object) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)
    return told


def _free_port(config: ServeConfig) -> int:
    """The requested port, or any free one."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError:
            raise UserError(
                f"{config.host}:{config.port} cannot be listened on; give another port=... or host=..."
            ) from None
        return int(probe.getsockname()[1])
