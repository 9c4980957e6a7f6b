"""Building blocks: the only room but `models` that uses Linen."""
