"""Exit statuses of a run that did not end by itself.

0 and 2 (a user's mistake) are final. All others leave a state from which the
same command resumes; `launch/*` start it again, except after a signal that they
received themselves.
"""

from __future__ import annotations

# Another process or the connection to it was lost, or storage stayed away.
LOST = 75
HUNG = 76  # no step finished within train.watchdog_s
