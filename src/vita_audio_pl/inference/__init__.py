"""Decoding: sessions, caches, the heads' patterns, verification and streaming."""

from vita_audio_pl.inference.batch import generate
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.inference.sampling import Greedy, Sampling

__all__ = ["Generation", "Greedy", "Runtime", "Sampling", "SpanConstraint", "generate"]
