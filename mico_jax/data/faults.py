"""What becomes of an error while a sample is read and decoded.

The content of a sample can make a library raise anything. Whatever it is, the
sample is bad: the error becomes a DecodeError of one line, and the sample is
named, counted and replaced. Three kinds pass through instead:

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
from mico_jax.data.memory import memory_is_short
from mico_jax.failures import TransientError
from mico_jax.modalities import DecodeError

T = TypeVar("T")

# Reentrant: a guarded call may hold another one.
_alone = threading.RLock()


def describe(error: BaseException) -> str:
  """`TypeName: message` in one line; of what says all itself that alone."""
  text = " ".join(str(error).split())[:300]
  if text and (isinstance(error, DecodeError) or type(error) is ValueError):
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
    try:
      return call()
    except Exception as error:
      if not _lacks_memory(error):
        raise
    return _again(call, what)
  except (ConfigError, TransientError):
    raise
  except Exception as error:
    text = f"{what}: {describe(error)}" if what else describe(error)
    content = not reads or isinstance(error, DecodeError)
    if not content and failures.is_transient(error):
      raise TransientError(text) from error
    raise DecodeError(text) from error


def _lacks_memory(error: BaseException | None) -> bool:
  """Whether a lack of memory is the error, or what it was raised from."""
  for _ in range(10):
    if isinstance(error, MemoryError):
      return True
    error = None if error is None else error.__cause__
  return False


def _again(call: Callable[[], T], what: str) -> T:
  """Repeats a call that lacked memory, alone, once there is some."""
  patience = failures.patience_seconds()
  waits = failures.delays(patience)
  with waiting():
    _alone.acquire()
  try:
    while True:
      if not memory_is_short():
        try:
          return call()
        except Exception as error:
          if not (_lacks_memory(error) and memory_is_short()):
            raise
      delay = next(waits, None)
      if delay is None:
        raise TransientError(
          f"{what or 'a sample'}: short of memory for {patience:g} s."
        )
      with waiting():
        time.sleep(delay)
  finally:
    _alone.release()
