"""Where figures go: metrics.csv, TensorBoard, wandb."""
