"""What a run shows and writes down while it trains."""
