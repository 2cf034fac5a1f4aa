"""The training step: LightningModule, optimiser, schedule, freezing, running sums."""
