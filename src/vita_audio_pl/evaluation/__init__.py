"""Evaluation: benches, judges, scores and confidence intervals."""
