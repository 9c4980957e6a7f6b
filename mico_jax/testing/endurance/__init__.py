"""Runs that are killed, that last, and the curves they leave."""
