"""Where other libraries hold each of our parameters: a file a family."""
