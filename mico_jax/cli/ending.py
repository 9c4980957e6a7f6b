"""Ends the process while daemon threads are still inside libraries.

Python ends a daemon thread, such as the one that compiles the self-check, when
it next returns from a library. Inside C++ this unwinds frames that must not be
unwound, and the process aborts with "FATAL: exception not rethrown" and status
134, even after a success. So a command runs the exit handlers as Python does,
and then ends the process at once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import Any, NoReturn

from mico_jax import failures


def _flush(status: int) -> int:
  """Flushes both streams; another status if results could not be written."""
  try:
    sys.stdout.flush()
  except BrokenPipeError:
    pass  # `mico-jax ... | head` is no error
  except (OSError, ValueError) as e:
    if status == 0:
      from mico_jax.run.cluster import status as statuses

      failures.say(f"mico-jax: error: stdout: {failures.describe(e)}")
      status = statuses.LOST
  with contextlib.suppress(OSError, ValueError):  # no place is left to say it
    sys.stderr.flush()
  return status


def leave(status: int) -> NoReturn:
  """Ends the process with a status, as `sys.exit` does from the main thread.

  Waits for threads that are no daemons, runs the exit handlers, and flushes
  stdout and stderr.

  Args:
    status: of the process; 0 becomes `run.cluster.status.LOST` where stdout
      cannot be written.
  """
  hidden: Any = (threading, atexit)
  status = _flush(status)
  try:
    hidden[0]._shutdown()
    hidden[1]._run_exitfuncs()
  except BaseException as e:
    failures.say(f"mico-jax: at the end: {failures.describe(e)}")
  os._exit(_flush(status))
