"""Files of tensors: their base types, readers and writers."""
