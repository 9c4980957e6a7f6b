"""Training from scratch on small labelled sets, one file a set."""
