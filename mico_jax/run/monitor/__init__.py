"""Progress, metrics, alarms and report of a training run."""
