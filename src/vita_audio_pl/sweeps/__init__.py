"""Several stages or runs by one command: chains of stages, ablations."""
