"""Leaving the process while threads of it are still inside libraries.

A thread that may be left behind (a daemon), such as the one that compiles the
self-check, is ended by Python when it next comes back from a library. Inside
C++ that unwinds frames that must not be unwound, and the process aborts with
"FATAL: exception not rethrown" and status 134, whatever it did and said before.
So a command does what Python does at its end, and then leaves at once.
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
  """Writes what is buffered; another status if results could not be written."""
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

  Waits for threads that are no daemons, runs what is registered to run at the
  end, and writes what is buffered.

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
