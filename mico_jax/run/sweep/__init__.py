"""Sweeps: many runs that differ in a few fields, and what they show together.

`plan` turns a sweep's description into runs, `runner` trains those that are
not done, one process each, `results` averages them with intervals, `law` fits
power laws, `table` and `picture` show it.
"""
