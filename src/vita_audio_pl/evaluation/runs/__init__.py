"""One evaluation from its settings to its result files: plan, identity, processes, records."""
