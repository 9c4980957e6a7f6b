"""Checkpoints as models of public evaluation harnesses, one file each.

Each file needs its harness installed, and says which versions it was run with.
"""
