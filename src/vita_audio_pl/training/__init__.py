"""Training: one stage as a Lightning run, and the stages as a chain that hands over through disk."""
