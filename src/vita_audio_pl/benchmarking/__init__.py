"""Measurements of speed and memory: training steps, decoding."""
