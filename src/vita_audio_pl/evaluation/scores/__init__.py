"""From answers to figures: normalisation, error rates, intervals, comparisons, the judge's own error."""
