"""Requirements of a training stage, before anything is queued."""
