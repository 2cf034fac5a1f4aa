"""A stage from its settings to its model folder: data, starting model, trainer, identity, manifest."""
