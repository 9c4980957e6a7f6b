"""The progress bar of calls on long lists."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

_DELAY = 3.0  # seconds without a bar: most calls are over by then


def bar(total: int, what: str, progress: bool | None) -> Any:
  """A bar that is a context manager with `update(count)`.

  Args:
    total: number of inputs.
    what: is done to them.
    progress: whether it is shown; None: in a terminal or notebook, to calls
      that take longer than a few seconds.
  """
  if progress is None:
    shown = sys.stderr.isatty() or "ipykernel" in sys.modules
    delay = _DELAY
  else:
    shown, delay = progress, 0.0
  return tqdm(
    total=total,
    desc=what,
    delay=delay,
    disable=not shown,
    leave=progress is True,
    unit="input",
  )
