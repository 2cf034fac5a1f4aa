"""Results of evaluations: reading them, choosing among them, a page for each."""
