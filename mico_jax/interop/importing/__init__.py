"""Foreign weights: recognise, read, convert."""
