"""Device mesh, shardings and multi-process runs."""
