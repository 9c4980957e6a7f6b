"""A bounded queue before a few threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

from mico_jax.app.limits import Refused


class Line:
  """Requests that wait for a thread; so many, and no more.

  A place is taken before anything of a request is read, so that requests which
  are refused cost nothing. To be used from one event loop.

  Attributes:
    taken: places that are taken.
    most: places.
    held: bytes of uploads in memory.
  """

  def __init__(self, most: int, held_bytes: int = 0, *, threads: int = 1):
    """Starts with free places.

    Args:
      most: places.
      held_bytes: of all uploads together; 0: there are none.
      threads: that compute.
    """
    self.most, self.taken, self.held = most, 0, 0
    self._held_bytes = held_bytes
    self._pool = concurrent.futures.ThreadPoolExecutor(
      threads, thread_name_prefix="mico-serve"
    )

  @contextlib.asynccontextmanager
  async def place(self) -> AsyncIterator[Callable[..., Any]]:
    """A place in the line; gives what runs a function in a thread.

    Raises:
      Refused: if there is none.
    """
    if self.taken >= self.most:
      raise Refused(429, f"{self.most} requests wait already; try again later.")
    self.taken += 1
    try:
      yield self._run
    finally:
      self.taken -= 1

  async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
    loop = asyncio.get_running_loop()
    # A caller that goes away does not end its thread, whose place it keeps.
    future = loop.run_in_executor(
      self._pool, functools.partial(function, *args)
    )
    try:
      return await asyncio.shield(future)
    except asyncio.CancelledError:
      with contextlib.suppress(Exception):
        await future
      raise

  def hold(self, count: int) -> None:
    """Notes bytes that came.

    Raises:
      Refused: if all uploads together are too many.
    """
    if self.held + count > self._held_bytes:
      raise Refused(429, "too many uploads at once; try again later.")
    self.held += count

  def release(self, count: int) -> None:
    """Notes bytes that are no longer needed."""
    self.held -= count

  def close(self) -> None:
    """Ends the threads; what waits is dropped."""
    self._pool.shutdown(wait=False, cancel_futures=True)
