"""Numerical kernels: a folder per operation, a reference beside backends."""
