"""Models on disk: Hugging Face folders, checkpoints, their configurations and tensors, read and written."""
