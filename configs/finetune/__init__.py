"""Fine-tuning with the published settings, by kind of task."""
