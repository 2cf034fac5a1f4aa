"""Checkpoints on disk: their folders, writing, reading, local copies, random states."""
