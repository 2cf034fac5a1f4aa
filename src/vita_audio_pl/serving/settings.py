"""Settings of `python -m vita_audio_pl.serve` and `talk`."""

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.decoding import VERIFY_MEANING, VERIFY_MODES, WHEN_FULL
from vita_audio_pl.config.fields import require, setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.options import InferenceConfig

KEYS_VARIABLE = "VITA_AUDIO_PL_API_KEYS"
RAY_MESSAGE_BYTES = 16 * 2**20
"""Ray Serve's proxy accepts no larger WebSocket message, and has no setting for it."""


@dataclass
class LimitsConfig:
    """Limits per client and in total."""

    sessions: int = setting(64, "open WebSocket sessions, all clients together", at_least=1)
    sessions_a_client: int = setting(8, "open sessions per API key, or per address without keys", at_least=1)
    queue: int = setting(32, "answers that may wait for a slot; more are refused with Retry-After", at_least=0)
    audio_seconds: float = setting(60.0, "longest recording or spoken turn, s", above=0)
    text_characters: int = setting(8000, "longest text of a message, all of its parts, or of instructions", at_least=1)
    message_bytes: int = setting(16 * 2**20, "largest WebSocket message or HTTP body, bytes", at_least=1024)
    idle_seconds: float = setting(600.0, "seconds after which an idle session is closed", above=0)
    unread_bytes: int = setting(32 * 2**20, "unread bytes at which a session is closed", at_least=2**20)


@dataclass
class ServeConfig(InferenceConfig):
    """Settings of `python -m vita_audio_pl.serve`; decoding settings are what requests say nothing of."""

    name: str | None = setting(None, "model name in answers and /v1/models; null = the folder's name")
    host: str = setting(
        "127.0.0.1", "address to listen on; 0.0.0.0 = all interfaces: others than localhost need api_keys", common=True
    )
    port: int = setting(8000, "port to listen on; 0 = any free port", at_least=0, at_most=65535, common=True)
    slots: int = setting(8, "answers decoded at a time", at_least=1, common=True)
    context_tokens: int = setting(
        4096, "longest conversation with its answer, tokens; less if the model has fewer positions", at_least=64
    )
    when_full: str = setting(
        "slide", "what happens to a full conversation: slide drops the oldest exchanges", choices=WHEN_FULL
    )
    replicas: int = setting(
        1, "copies of the model behind one address, by Ray Serve; slots and limits hold for each", at_least=1
    )
    decoding_process: bool | None = setting(
        None, "decode in a process of its own, which the network does not hold up; null = true, false on a GPU"
    )
    sound_workers: int = setting(2, "threads that encode audio, and decode it where no process does", at_least=1)
    sound_processes: int | None = setting(
        None,
        "processes that decode audio, each with the codec; 0 = the threads do; null = 2, 1 on one processor, 0 on a GPU",
        at_least=0,
        at_most=256,
    )
    voices: dict[str, str] = setting(
        {}, "voice names that requests may use, and a recording of each: +voices.NAME=FILE", exists=True
    )
    api_keys: str | None = setting(
        None,
        f"file with one key a line; null = those in {KEYS_VARIABLE} (commas between), or none are asked for",
        exists=True,
    )
    origins: list[str] = setting([], "other web origins that may call, such as https://example.org", address=True)
    tls_certificate: str | None = setting(
        None,
        "PEM certificate; null = no TLS (browsers allow the microphone on localhost only)",
        exists=True,
    )
    tls_key: str | None = setting(None, "PEM key of the certificate; null = no TLS", exists=True)
    drain_seconds: float = setting(30.0, "seconds that running answers get after SIGTERM", at_least=0)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def check(self) -> None:
        require(
            (self.tls_certificate is None) == (self.tls_key is None),
            "tls_certificate and tls_key belong together; give both files or neither",
        )
        for origin in self.origins:
            require(
                bool(re.fullmatch(r"https?://[^/\s*]+", origin)),
                f"origins holds {origin!r}; give scheme and host, such as https://example.org",
            )
        require(
            self.replicas == 1 or self.limits.message_bytes <= RAY_MESSAGE_BYTES,
            f"limits.message_bytes={self.limits.message_bytes} is more than the {RAY_MESSAGE_BYTES} that Ray Serve takes",
        )
        require(
            self.token_limit < self.context_tokens,
            f"max_new_tokens={self.token_limit} leaves no room for a question in context_tokens={self.context_tokens}",
        )


@dataclass
class TalkConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.talk`."""

    url: str = setting("ws://localhost:8000/v1/realtime", "URL of the server", common=True, address=True)
    key: str | None = setting(None, f"that the server asks for; null = the first in {KEYS_VARIABLE}")
    audio: list[str] = setting(
        [], "recordings to send, one turn each; none and no text = the microphone", common=True, exists=True
    )
    text: str | None = setting(None, "text to send after the recordings; null = none", common=True, address=True)
    output: str = setting("answer.wav", "file for the spoken answers, one after the other", common=True)
    mode: str | None = setting(None, "turbo, boost, balance, vanilla; null = the model's own", common=True)
    verify: str = setting("none", VERIFY_MEANING, choices=VERIFY_MODES, common=True)

    def check(self) -> None:
        require(
            bool(re.fullmatch(r"wss?://[^\s]+", self.url)),
            f"url={self.url} must begin with ws:// or wss://, such as ws://localhost:8000/v1/realtime",
        )


def api_keys(config: ServeConfig) -> frozenset[str]:
    """The accepted API keys; empty if none are required.

    Raises:
        UserError: the file is unreadable, readable by other users, or has no key.
    """
    if config.api_keys is None:
        listed = os.environ.get(KEYS_VARIABLE, "").split(",")
        return frozenset(key.strip() for key in listed if key.strip())
    path = Path(config.api_keys)
    try:
        mode, lines = path.stat().st_mode, path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"api_keys={path} cannot be read: {error}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"api_keys={path} can be read by others than its owner; chmod 600 {path}")
    keys = frozenset(line for line in map(str.strip, lines) if line and not line.startswith("#"))
    if not keys:
        raise UserError(f"api_keys={path} holds no key; write one a line")
    return keys
