"""What is known of the samples of a file without reading it again."""
