"""What a config needs on a slice that is not there: memory, FLOPs, time."""
