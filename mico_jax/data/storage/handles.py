"""Open handles of local files, as many as a process may hold."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

_MOST = 128


class _Handle:
  """A descriptor that is closed when nobody uses it any more."""

  def __init__(self, path: str):
    # Through `open`: what stands between a program and its disk stands there.
    self.file = open(path, "rb", buffering=0)  # noqa: SIM115

  def __del__(self) -> None:
    if hasattr(self, "file"):
      self.file.close()


class Handles:
  """Reads ranges of local files, whose handles it keeps for a while."""

  def __init__(self) -> None:
    """Opens nothing."""
    self._lock = threading.Lock()
    self._open: OrderedDict[str, _Handle] = OrderedDict()

  def _get(self, path: str) -> _Handle:
    with self._lock:
      handle = self._open.get(path)
      if handle is not None:
        self._open.move_to_end(path)
        return handle
    handle = _Handle(path)
    with self._lock:
      self._open[path] = handle
      while len(self._open) > _MOST:
        self._open.popitem(last=False)
    return handle

  def forget(self, path: str) -> None:
    """Opens the file again next time: its handle may be stale."""
    with self._lock:
      self._open.pop(path, None)

  def read(self, path: str, offset: int, size: int) -> bytes:
    """Bytes at a place; fewer at the end of the file.

    Raises:
      OSError: as the system says; the file is opened again next time.
    """
    pieces = []
    try:
      handle = self._get(path)
      while size > 0:  # one call reads at most 2 GiB
        piece = os.pread(handle.file.fileno(), size, offset)
        if not piece:
          break
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    except OSError:
      self.forget(path)
      raise
    return b"".join(pieces) if len(pieces) != 1 else pieces[0]

  def will_read(self, path: str, offset: int, size: int) -> None:
    """Lets the system read ahead, where it can."""
    if hasattr(os, "posix_fadvise"):
      handle = self._get(path).file.fileno()
      os.posix_fadvise(handle, offset, size, os.POSIX_FADV_WILLNEED)
