"""Sends metrics to Weights & Biases and MLflow from a process of its own; the supervisor's side is ``sidecar``."""
