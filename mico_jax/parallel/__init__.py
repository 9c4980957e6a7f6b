"""The device mesh, shardings, and several processes."""
