"""Benchmarks of speed and memory: training steps, decoding, data, several processes."""
