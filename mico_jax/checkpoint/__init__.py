"""Checkpoints that say what they are and check themselves."""
