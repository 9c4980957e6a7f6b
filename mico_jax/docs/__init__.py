"""Pages made from the tables of the code, and measured results."""
