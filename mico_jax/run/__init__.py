"""The loops, wired from everything above, and what they show and write.

`progress` and `logging` tell of a run while it lasts, `report` draws it
afterwards, `watch` raises alarms, `signals` turns SIGTERM into a clean stop.
"""
