"""Callbacks of a training run: checkpoints, bad steps, samples, monitoring, preemption."""
