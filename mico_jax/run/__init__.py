"""The training loop.

`pretrain` is the loop, `monitor` its progress, metrics and report, `cluster`
the coordination of its processes; `commands` are the jobs besides training.
"""
