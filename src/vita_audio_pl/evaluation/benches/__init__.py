"""Benches: their files, readers and items."""
