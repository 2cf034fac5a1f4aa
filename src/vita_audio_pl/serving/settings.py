"""The settings of `python -m vita_audio_pl.serve`."""

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.decoding import VERIFY_MODES
from vita_audio_pl.config.fields import require, setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import WHEN_FULL
from vita_audio_pl.inference.options import InferenceConfig

KEYS_VARIABLE = "VITA_AUDIO_PL_API_KEYS"


@dataclass
class LimitsConfig:
    """What one client may ask for."""

    sessions: int = setting(64, "open WebSocket sessions, all clients together", at_least=1)
    sessions_a_client: int = setting(
        8, "open sessions of one key, or of one address where there are no keys", at_least=1
    )
    queue: int = setting(32, "answers that wait for a slot; more are refused with the time to wait", at_least=0)
    audio_seconds: float = setting(60.0, "longest recording or spoken turn, s", above=0)
    text_characters: int = setting(8000, "longest text of a message", at_least=1)
    message_bytes: int = setting(16 * 2**20, "largest WebSocket message or HTTP body, bytes", at_least=1024)
    idle_seconds: float = setting(600.0, "a session that sends nothing for so long is closed, s", above=0)
    unread_bytes: int = setting(32 * 2**20, "a session that leaves so much unread is closed, bytes", at_least=2**20)


@dataclass
class ServeConfig(InferenceConfig):
    """Settings of `python -m vita_audio_pl.serve`; decoding settings are what requests say nothing of."""

    name: str | None = setting(None, "of the model in answers and /v1/models; null = that of its folder")
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 = all, which wants api_keys and tls", common=True)
    port: int = setting(8000, "to listen on; 0 = any free one", at_least=0, at_most=65535, common=True)
    slots: int = setting(8, "answers that are written at a time", at_least=1, common=True)
    context_tokens: int = setting(
        4096, "of a conversation with its answer; less where the model has fewer", at_least=64
    )
    when_full: str = setting("slide", "a full conversation: slide leaves out the oldest exchanges", choices=WHEN_FULL)
    sound_workers: int = setting(2, "threads that encode and decode audio", at_least=1)
    voices: dict[str, str] = setting({}, "names that requests may give as voice, and a recording of each")
    api_keys: str | None = setting(
        None, f"file with one key a line; null = those in {KEYS_VARIABLE} (commas between), or none are asked for"
    )
    origins: list[str] = setting([], "other web sites whose pages may call, such as https://example.org", address=True)
    tls_certificate: str | None = setting(
        None, "PEM file; null = no TLS, and browsers give a microphone on localhost alone"
    )
    tls_key: str | None = setting(None, "PEM file of its key; null = no TLS")
    drain_seconds: float = setting(30.0, "that answers may take to end after SIGTERM, s", at_least=0)
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
            self.token_limit < self.context_tokens,
            f"max_new_tokens={self.token_limit} leaves no room for a question in context_tokens={self.context_tokens}",
        )


@dataclass
class TalkConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.talk`."""

    url: str = setting("ws://localhost:8000/v1/realtime", "of the server", common=True, address=True)
    key: str | None = setting(None, f"that the server asks for; null = the first in {KEYS_VARIABLE}")
    audio: list[str] = setting([], "recordings to say, one turn each; none and no text = the microphone", common=True)
    text: str | None = setting(
        None, "to say in writing, after the recordings; null = nothing", common=True, address=True
    )
    output: str = setting("answer.wav", "where the spoken answers go, one after the other", common=True)
    mode: str | None = setting(None, "turbo, boost, balance, vanilla; null = the model's own", common=True)
    verify: str = setting("none", "let the backbone check drafts", choices=VERIFY_MODES, common=True)

    def check(self) -> None:
        require(
            bool(re.fullmatch(r"wss?://[^\s]+", self.url)),
            f"url={self.url} must begin with ws:// or wss://, such as ws://localhost:8000/v1/realtime",
        )


def api_keys(config: ServeConfig) -> frozenset[str]:
    """The keys that clients must show one of; none where none are asked for.

    Raises:
        UserError: the file cannot be read, others than its owner can read it, or it holds no key.
    """
    if config.api_keys is None:
        listed = os.environ.get(KEYS_VARIABLE, "").split(",")
        return frozenset(key.strip() for key in listed if key.strip())
    path = Path(config.api_keys)
    try:
        mode, lines = path.stat().st_mode, path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"api_keys={path} cannot be read: {error}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"api_keys={path} can be read by others than its owner; chmod 600 {path}")
    keys = frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise UserError(f"api_keys={path} holds no key; write one a line")
    return keys
