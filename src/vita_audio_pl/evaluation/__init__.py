"""Tasks, judges, scores and their certainty."""
