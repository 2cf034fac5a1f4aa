"""Engines: how a model is distributed over devices, and how its whole parameters are read and written."""
