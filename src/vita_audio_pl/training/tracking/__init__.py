"""Logging of metrics: metrics.csv, TensorBoard, wandb."""
