"""The training loop, wired from everything above.

`pretrain` is the loop; `monitor` shows, writes and draws what happens in it,
`cluster` keeps its processes together, `commands` are those beside training.
"""
