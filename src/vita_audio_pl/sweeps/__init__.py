"""Several stages or runs in one command: chains of stages, ablations."""
