"""What the processes of a run need of each other, and of the machine."""
