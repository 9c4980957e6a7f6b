"""Errors of reading and decoding a sample: which make it a broken sample.

The content of a sample can make a library raise any error. Such an error
becomes a DecodeError of one line, and the sample is logged, counted and
replaced. Three kinds of error pass through instead:

- ConfigError: a mistake of the user; an optional package that is missing is
  one as well, since no other sample could be read either.
- TransientError, and errors of a read that `mico_jax.failures.is_transient`
  accepts. An unreachable store is waited for: replacing its samples would make
  the data depend on chance.
- Errors that are no `Exception` (Ctrl-C).

After a lack of memory the call is repeated, one sample at a time, once the
machine has memory again. A sample that then fails again counts as broken.
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
from mico_jax.extras import EXTRAS, install
from mico_jax.failures import TransientError
from mico_jax.modalities import DecodeError

T = TypeVar("T")

# Reentrant: a guarded call may hold another one.
_alone = threading.RLock()


def describe(error: BaseException) -> str:
  """One line for an error: `TypeName: message`.

  A DecodeError or a plain ValueError gives its message alone.
  """
  text = " ".join(str(error).split())[:300]
  if text and (isinstance(error, DecodeError) or type(error) is ValueError):
    return text
  return f"{type(error).__name__}: {text}" if text else type(error).__name__


def guarded(call: Callable[[], T], what: str = "", *, reads: bool = False) -> T:
  """The result of a call whose errors are those of a sample's content.

  Args:
    call: reads or decodes a sample; must be safe to repeat.
    what: prefix of the error message, such as the modality: "image".
    reads: whether the call reads from a store, whose errors may be transient.

  Raises:
    DecodeError: if the sample cannot be used.
    TransientError: for storage or memory that stays short.
    ConfigError: as raised by the call.
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
    package = getattr(error, "name", None) or ""
    if isinstance(error, ImportError) and package in EXTRAS:
      raise ConfigError(
        f"{what or 'a sample'} needs the package {package}: "
        f"{install(EXTRAS[package])}."
      ) from error
    text = f"{what}: {describe(error)}" if what else describe(error)
    content = not reads or isinstance(error, DecodeError)
    if not content and failures.is_transient(error):
      raise TransientError(text) from error
    raise DecodeError(text) from error


def _lacks_memory(error: BaseException | None) -> bool:
  """Whether an error, or one of its causes, is a lack of memory."""
  for _ in range(10):
    if isinstance(error, MemoryError):
      return True
    error = None if error is None else error.__cause__
  return False


def _again(call: Callable[[], T], what: str) -> T:
  """Repeats a call that lacked memory, one at a time, once there is some."""
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
