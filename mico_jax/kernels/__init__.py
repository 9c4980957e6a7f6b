"""Numerical operations: one folder each, a plain reference beside backends."""
