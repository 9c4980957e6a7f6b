"""What becomes of an error while a sample is read and decoded.

The content of a sample can make a library raise anything. Whatever it is, the
sample is bad: the error becomes a DecodeError, in one line that ends in
`TypeName: message`, and the sample is named, counted and replaced. Three kinds
pass through instead:

- ConfigError: the user's mistake.
- TransientError, and what `mico_jax.failures.is_transient` says of a read: a
  store that is away is waited out and never replaced by another sample, since
  chance must not change the data.
- Errors that are no `Exception` (Ctrl-C).

Lack of memory is tried again, one sample at a time, after a wait while the
machine is short of it. A sample that fails again while there is memory is at
fault itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from mico_jax import failures
from mico_jax.config import ConfigError
from mico_jax.data.guard import waiting
from mico_jax.failures import TransientError
from mico_jax.modalities import DecodeError

T = TypeVar("T")

_alone = threading.Lock()


def describe(error: BaseException) -> str:
  """`TypeName: message` in one line; of a DecodeError the message alone."""
  text = " ".join(str(error).split())[:300]
  if isinstance(error, DecodeError):
    return text
  return f"{type(error).__name__}: {text}" if text else type(error).__name__


def guarded(call: Callable[[], T], what: str = "", *, reads: bool = False) -> T:
  """The result of a call, with errors of a sample's content as DecodeError.

  Args:
    call: reads or decodes; must be safe to repeat.
    what: begins the message, such as a modality: "image".
    reads: the call reads from a store, whose faults may pass.

  Raises:
    DecodeError: if the sample cannot be used.
    TransientError: for a store or a lack of memory that does not pass.
    ConfigError: as raised.
  """
  try:
    return call()
  except Exception as error:
    if _lacks_memory(error):
      return _again(call, what)
    raise _judged(error, what, reads) from error


def _judged(error: Exception, what: str, reads: bool) -> Exception:
  if isinstance(error, (ConfigError, TransientError)):
    return error
  content = not reads or isinstance(error, DecodeError)
  if not content and failures.is_transient(error):
    return TransientError(f"{what or 'reading'}: {describe(error)}")
  return DecodeError(f"{what}: {describe(error)}" if what else describe(error))


def _lacks_memory(error: BaseException) -> bool:
  """Whether a lack of memory is the error, or what it was raised from."""
  current: BaseException | None = error
  for _ in range(10):
    if isinstance(current, MemoryError):
      return True
    current = None if current is None else current.__cause__
  return False


def _again(call: Callable[[], T], what: str) -> T:
  """Repeats a call that lacked memory, alone, once there is some."""
  with waiting():
    _alone.acquire()
  try:
    for delay in failures.delays(failures.PATIENCE):
      if failures.memory_is_short():
        with waiting():
          time.sleep(delay)
        continue
      try:
        return call()
      except Exception as error:
        if not _lacks_memory(error):
          raise _judged(error, what, False) from error
        if not failures.memory_is_short():
          raise _judged(error, what, False) from error
  finally:
    _alone.release()
  raise TransientError(
    f"{what or 'a sample'}: short of memory for {failures.PATIENCE:g} s."
  )
