"""A small spoken world that needs no download: sentences from templates, spoken by espeak-ng, split for honest tests."""

from vita_audio_pl.spoken_world.build import WORLD, World, build_world, find_world

__all__ = ["WORLD", "World", "build_world", "find_world"]
