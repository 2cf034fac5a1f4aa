"""One stage, from settings to model folder: data, starting model, trainer, hand-over."""
