"""Plans of a config on devices that are absent: memory, FLOPs, time."""
