"""Decoding: sessions, caches, the heads' patterns, verification and streaming.

The names below are loaded when first used, so that a command which only needs the settings starts without torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ChatFormat": "inference.dialogue",
    "Conversation": "inference.dialogue",
    "Generation": "inference.generation",
    "Greedy": "config.decoding",
    "LoadedModel": "inference.loading",
    "Prompter": "inference.prompts",
    "Runtime": "inference.runtime",
    "Sampling": "config.decoding",
    "SpanConstraint": "inference.constraint",
    "generate": "inference.batch",
    "load_speech_model": "inference.loading",
    "task_conversation": "inference.prompts",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"vita_audio_pl.{_HOMES[name]}"), name)
