"""Who listens to spoken answers."""
