"""State, optimizers and the training step."""
