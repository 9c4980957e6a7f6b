"""Waiting for a store that is away, slow or busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from mico_jax.config import ConfigError
from mico_jax.data.guard import waiting
from mico_jax.data.storage.io_threads import in_io_thread, io_threads
from mico_jax.data.storage.paths import short
from mico_jax.failures import TransientError, is_transient, say, wait_out
from mico_jax.modalities import DecodeError

T = TypeVar("T")


class Patience:
  """Repeats reads whose faults may pass."""

  def __init__(self, timeout: float, patience: float | None):
    """Takes limits.

    Args:
      timeout: seconds per attempt at a remote store.
      patience: seconds of waiting in all; None:
        `mico_jax.failures.patience_seconds`.
    """
    self._timeout, self._patience = timeout, patience

  def patiently(
    self,
    call: Callable[[], T],
    path: str,
    passing: Callable[[BaseException], bool] = is_transient,
  ) -> T:
    """The result of a read, tried again while its faults may pass.

    Args:
      call: reads; must be safe to repeat.
      path: that it reads, for messages.
      passing: which errors may pass.

    Raises:
      DecodeError: for what stays as it is (no such file, refused, ...).
      TransientError: when the patience is at an end.
    """

    def attempt() -> T:
      with waiting():
        return call()

    def sleep(seconds: float) -> None:
      with waiting():
        time.sleep(seconds)

    try:
      return wait_out(
        attempt,
        f"reading {short(path)}",
        patience=self._patience,
        passing=passing,
        note=lambda text: say(f"mico-jax: {text}"),
        sleep=sleep,
      )
    except (DecodeError, TransientError):
      raise
    except OSError as error:
      text = error.strerror or " ".join(str(error).split())[:200]
      if isinstance(error, FileNotFoundError) and not error.strerror:
        text = "does not exist"
      raise DecodeError(
        f"{short(path)}: {text or type(error).__name__}."
      ) from error
    except ValueError as error:  # a NUL or a lone surrogate in the name
      raise DecodeError(f"{short(path)}: {error}.") from error

  def remotely(self, call: Callable[[], T], path: str) -> T:
    """`patiently`, by a thread that is left behind after the timeout."""
    if in_io_thread():
      return call()  # for later: whoever needs it has the patience
    try:
      return self.patiently(
        lambda: io_threads().call(call, self._timeout, short(path)),
        path,
        passing=_may_pass,
      )
    except ImportError as error:  # no client for this scheme
      raise ConfigError(f"{short(path)}: {error}") from error


def _may_pass(error: BaseException) -> bool:
  """Whether a remote store's error may pass: all but what is known to stay."""
  stays = (
    DecodeError,
    FileNotFoundError,
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ValueError,
  )
  return is_transient(error) or not isinstance(error, stays)
