"""Decoding: sessions, caches, the heads' patterns, verification and streaming."""

from vita_audio_pl.config.decoding import Greedy, Sampling
from vita_audio_pl.inference.batch import generate
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.dialogue import ChatFormat, Conversation
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.loading import LoadedModel, load_speech_model
from vita_audio_pl.inference.prompts import Prompter, task_conversation
from vita_audio_pl.inference.runtime import Runtime

__all__ = [
    "Conversation",
    "Generation",
    "Greedy",
    "LoadedModel",
    "ChatFormat",
    "Prompter",
    "Runtime",
    "Sampling",
    "SpanConstraint",
    "generate",
    "load_speech_model",
    "task_conversation",
]
