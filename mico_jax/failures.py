"""Which failures may pass by themselves, and waiting them out.

Three kinds of failure end a command: a user's mistake (status 2, the same again
would not help), a fault of storage or memory that may pass (status 75, after
minutes of patience: start again), and a defect (status 1, with a traceback).
This module tells the second kind from the others. It looks at attributes and
names, so that no client of a store has to be installed or imported.
"""

from __future__ import annotations

import errno
import pathlib
import random
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 300.0  # seconds of waiting before a passing fault ends a start

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
# Too slow, too many requests, and what a server says of itself.
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


class TransientError(OSError):
  """A fault of storage or memory that did not pass in time.

  The same command may well succeed later; a run leaves with status 75.
  """


def _http_status(error: BaseException) -> int:
  """The HTTP status that an error of a client carries; 0: none."""
  response: Any = getattr(error, "response", None)
  found: Any = None
  if isinstance(response, dict):  # botocore
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
  elif response is not None:  # requests
    found = getattr(response, "status_code", None)
  for name in ("status", "code", "status_code"):
    if found is None:
      found = getattr(error, name, None)
  if isinstance(found, str) and found.isdigit():
    found = int(found)
  return found if isinstance(found, int) else 0


def _causes(error: BaseException) -> Iterator[BaseException]:
  """An error and what it was raised from, each once."""
  seen: set[int] = set()
  current: BaseException | None = error
  while current is not None and id(current) not in seen:
    seen.add(id(current))
    yield current
    current = current.__cause__


def is_transient(error: BaseException) -> bool:
  """Whether a failure may pass by itself: a store that is away, slow or full.

  A missing file, a folder in place of a file and a refused permission stay as
  they are and are not; neither are errors about the content of a file, and
  memory is a matter of its own (`MemoryError` gives False).

  Args:
    error: what was raised; its causes (`raise ... from`) count as well.
  """
  for cause in _causes(error):
    if isinstance(cause, TransientError):
      return True
    if isinstance(cause, (TimeoutError, ConnectionError)):
      return True
    if isinstance(cause, OSError) and cause.errno in PASSING_ERRNO:
      return True
    if _http_status(cause) in PASSING_HTTP:
      return True
    if type(cause).__name__ in _PASSING_NAMES:
      return True
    if str(cause).lstrip().startswith(_PASSING_STATUS):
      return True
  return False


_LOW_MEMORY = 512 << 20  # bytes; with less the machine is short of memory


def _number(path: str) -> int | None:
  """The number in a file of the kernel; None without one ("max")."""
  try:
    return int(pathlib.Path(path).read_text())
  except (OSError, ValueError):
    return None


def _rooms() -> Iterator[int]:
  """Bytes that are free under each limit that can be read (Linux)."""
  try:
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
      if line.startswith("MemAvailable:"):
        yield int(line.split()[1]) << 10
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  except (OSError, ValueError, IndexError):
    return
  soft, _ = resource.getrlimit(resource.RLIMIT_AS)
  if soft != resource.RLIM_INFINITY:
    yield soft - pages * resource.getpagesize()
  limit = _number("/sys/fs/cgroup/memory.max")
  used = _number("/sys/fs/cgroup/memory.current")
  if limit is not None and used is not None:
    # What the kernel can drop again (cached files) counts as free.
    yield limit - used + _inactive_files()


def _inactive_files() -> int:
  try:
    text = pathlib.Path("/sys/fs/cgroup/memory.stat").read_text()
    pairs = dict(line.split()[:2] for line in text.splitlines())
    return int(pairs.get("inactive_file", 0))
  except (OSError, ValueError):
    return 0


def memory_is_short() -> bool:
  """Whether machine, container or process have under 512 MiB left."""
  return any(room < _LOW_MEMORY for room in _rooms())


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
    delay = min(left, step * random.uniform(0.5, 1.5))
    yield delay
    left -= delay
    step = min(2 * step, most)


def wait_out(
  call: Callable[[], T],
  what: str,
  *,
  patience: float = PATIENCE,
  passing: Callable[[BaseException], bool] = is_transient,
  note: Callable[[str], None] | None = None,
  sleep: Callable[[float], None] = time.sleep,
) -> T:
  """The result of a call, tried again while its failures may pass.

  Args:
    call: must be safe to repeat.
    what: it does, for messages: "reading s3://bucket/x".
    patience: seconds of waiting in all.
    passing: which errors are tried again.
    note: told of each wait, in one line.
    sleep: waits.

  Raises:
    TransientError: when the patience is at an end.
    Exception: what the call raises and is not passing, at once.
  """
  waits = delays(patience)
  while True:
    try:
      return call()
    except Exception as error:
      if not passing(error):
        raise
      delay = next(waits, None)
      reason = " ".join(str(error).split())[:200] or type(error).__name__
      if delay is None:
        raise TransientError(
          f"{what}: still failing after {patience:g} s: {reason}"
        ) from error
      if note is not None:
        note(f"{what}: {reason}; again in {delay:.1f} s.")
      sleep(delay)
