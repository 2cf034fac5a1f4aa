"""The files of a run: their layout, the run's identity, and the manifest of a finished model."""
