"""Engines: how a model is spread over devices, and how its whole parameters are read and written there."""
