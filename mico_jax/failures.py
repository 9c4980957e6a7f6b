"""Tells passing failures from others, and waits until they are over.

Three kinds of failure end a command: a user's mistake (status 2, the same again
would not help), a fault of storage or memory that may pass (status 75, after
minutes of patience: start again), and a defect (status 1, with a traceback).
This module tells the second kind from the others. It looks at attributes and
names, so that no client of a store has to be installed or imported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mico_jax.printing import escaped

T = TypeVar("T")

# A generator for this module alone, so that programs draw the same numbers.
_RANDOM = random.Random()

# Seconds of waiting before a passing fault ends a start; the variable
# MICO_JAX_PATIENCE has precedence.
PATIENCE = 300.0
PATIENCE_VARIABLE = "MICO_JAX_PATIENCE"

# What a local or network file system reports while it is away, busy or full.
PASSING_ERRNO = frozenset(
  {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EDQUOT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EPIPE,
    errno.EREMOTEIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
  }
)
# Timeouts, too many requests, and faults of the server.
PASSING_HTTP = frozenset({408, 425, 429, 500, 502, 503, 504})
# Names of errors of clients (botocore, aiohttp, urllib3, google, gRPC status).
_PASSING_NAMES = (
  "ConnectionError",
  "ConnectTimeout",
  "ConnectTimeoutError",
  "DeadlineExceeded",
  "EndpointConnectionError",
  "IncompleteRead",
  "IncompleteReadError",
  "ProtocolError",
  "ReadTimeout",
  "ReadTimeoutError",
  "ResponseStreamingError",
  "ServerDisconnectedError",
  "ServerTimeoutError",
  "ServiceUnavailable",
  "TooManyRequests",
)
# Words that begin a status of TensorStore or gRPC, which raise ValueError.
_PASSING_STATUS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")
# How TensorStore's messages end: the errno, or the status of a server.
_OS_CODE = re.compile(r"os_error_code='(\d+)'")
_HTTP_CODE = re.compile(r"HTTP response code: (\d{3})")


class TransientError(OSError):
  """A fault of storage or memory that did not pass in time.

  The same command may well succeed later; a run leaves with status 75.
  """


def _own_status(error: BaseException) -> int:
  response: Any = getattr(error, "response", None)
  status: Any = None
  if isinstance(response, dict):  # botocore
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
  elif response is not None:  # requests
    status = getattr(response, "status_code", None)
  for name in ("status", "code", "status_code"):
    if status is None:
      status = getattr(error, name, None)
  if isinstance(status, str) and status.isdigit():
    status = int(status)
  return status if isinstance(status, int) and 100 <= status < 600 else 0


def _spelled(text: str) -> bool:
  """Whether a message of TensorStore or gRPC speaks of a passing fault."""
  if text.lstrip().startswith(_PASSING_STATUS):
    return True
  codes = {int(code) for code in _OS_CODE.findall(text)}
  statuses = {int(code) for code in _HTTP_CODE.findall(text)}
  return bool(codes & PASSING_ERRNO or statuses & PASSING_HTTP)


def _causes(error: BaseException) -> Iterator[BaseException]:
  """An error and what it was raised from, each once."""
  seen: set[int] = set()
  current: BaseException | None = error
  while current is not None and id(current) not in seen:
    seen.add(id(current))
    yield current
    current = current.__cause__


def http_status(error: BaseException) -> int:
  """The HTTP status that an error of a client or its cause carries; 0: none."""
  return next((s for s in map(_own_status, _causes(error)) if s), 0)


def is_transient(error: BaseException) -> bool:
  """Whether a failure may pass by itself: a store that is away, slow or full.

  False for a missing file, a folder in place of a file, a refused permission,
  an error about the content of a file, and `MemoryError`.

  Args:
    error: what was raised; its causes (`raise ... from`) count as well.
  """
  if 400 <= (status := http_status(error)) < 500:
    return status in PASSING_HTTP  # some clients word every refusal as EIO
  for cause in _causes(error):
    if isinstance(cause, TransientError):
      return True
    if isinstance(cause, (TimeoutError, ConnectionError)):
      return True
    if isinstance(cause, OSError) and cause.errno in PASSING_ERRNO:
      return True
    if _own_status(cause) in PASSING_HTTP:
      return True
    if type(cause).__name__ in _PASSING_NAMES:
      return True
    if not isinstance(cause, OSError) and _spelled(str(cause)):
      return True
  return False


def may_repeat(error: BaseException) -> bool:
  """Whether a failure may pass and has not been waited out already."""
  waited = any(isinstance(cause, TransientError) for cause in _causes(error))
  return not waited and is_transient(error)


def delays(
  patience: float, *, first: float = 0.2, most: float = 30.0
) -> Iterator[float]:
  """Seconds to wait before each further attempt, doubling, with jitter.

  Args:
    patience: seconds in all.
    first: about how long the first one is.
    most: of a single one.
  """
  left, step = patience, first
  while left > 0:
    delay = min(left, step * _RANDOM.uniform(0.5, 1.5))
    yield delay
    left -= delay
    step = min(2 * step, most)


def patience_seconds() -> float:
  """Seconds to wait for passing faults: MICO_JAX_PATIENCE, or 300."""
  text = os.environ.get(PATIENCE_VARIABLE, "")
  try:
    return max(float(text), 0.0) if text else PATIENCE
  except ValueError:
    return PATIENCE


def describe(error: BaseException) -> str:
  """The message of an error in one line of at most 200 characters."""
  if isinstance(error, OSError) and error.strerror:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}"[:200]
  text = " ".join(str(error).split())
  code = _OS_CODE.search(text)
  if code and not isinstance(error, OSError):  # of TensorStore, at length
    return os.strerror(int(code[1]))
  return text[:200] or type(error).__name__


def say(line: str) -> None:
  """Writes a line to stderr, as far as that is possible."""
  # stderr may be closed, or on the full disk.
  with contextlib.suppress(OSError, ValueError):
    print(escaped(line), file=sys.stderr, flush=True)


def wait_out(
  call: Callable[[], T],
  what: str,
  *,
  patience: float | None = None,
  passing: Callable[[BaseException], bool] = is_transient,
  note: Callable[[str], None] | None = say,
  sleep: Callable[[float], None] = time.sleep,
) -> T:
  """The result of a call, tried again while its failures may pass.

  Args:
    call: must be safe to repeat.
    what: description for messages, such as "reading s3://bucket/x".
    patience: seconds of waiting in all; None: `patience_seconds`.
    passing: which errors are tried again.
    note: called with one line at each wait; None: silent.
    sleep: waits.

  Raises:
    TransientError: if it still fails when `patience` is over.
    Exception: at once, an error of the call that is not passing.
  """
  patience = patience_seconds() if patience is None else patience
  waits = delays(patience)
  while True:
    try:
      return call()
    except Exception as error:
      if not passing(error):
        raise
      delay = next(waits, None)
      reason = describe(error)
      if delay is None:
        raise TransientError(
          f"{what}: still failing after {patience:g} s: {reason}"
        ) from error
      if note is not None:
        note(f"{what}: {reason}; again in {delay:.1f} s.")
      sleep(delay)
