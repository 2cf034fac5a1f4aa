"""What a training stage will take, before anything is queued."""
