"""Typed configuration: Hydra composes `conf/`, the dataclasses here check it."""
