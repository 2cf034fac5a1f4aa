"""Judges: speech recognisers that transcribe spoken answers."""
