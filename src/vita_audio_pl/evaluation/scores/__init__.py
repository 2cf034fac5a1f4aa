"""Scoring: normalisation, error rates, confidence intervals, comparisons."""
