"""Coordination of the processes of a run, its lock, and its end."""
