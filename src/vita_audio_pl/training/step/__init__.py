"""One training step: the LightningModule, its optimiser and schedule, what is frozen, what is counted."""
