"""A checkpoint in use: inputs, the model, its self-check."""
