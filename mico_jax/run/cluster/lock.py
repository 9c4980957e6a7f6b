"""One run at a time in a workdir: `<workdir>/lock.json`.

The file names the holder, which renews it every few seconds. A lock is stale
when its process on this host is gone or, if it is held on another host, when it
has not been renewed for `LEASE` seconds. So a killed run can be resumed at once
on the same host, and after `LEASE` seconds on another. A holder that cannot
renew its lock for that long ends itself, since another host may then take over.
Of several processes that start at once, one gets the lock (see
`run.cluster.record`). Only process 0 of a run holds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from etils import epath

from mico_jax import failures, files
from mico_jax.config import ConfigError
from mico_jax.failures import wait_out
from mico_jax.run.cluster import record, status
from mico_jax.run.monitor import progress

FILE = "lock.json"
BEAT = 10.0  # seconds between renewals
# Seconds without renewal after which another host may take over: longer than
# most outages of a store, since a holder then ends itself.
LEASE = 120.0

_HELD: set[str] = set()  # tokens of this process


def _host() -> str:
  """This host and its process numbers: containers count as their own."""
  try:
    space = os.readlink("/proc/self/ns/pid")
  except OSError:
    space = ""
  return f"{socket.gethostname()} {space}".strip()


def _stat(pid: int) -> list[str]:
  """State and what follows in a process's line of Linux; [] elsewhere."""
  try:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
  except (OSError, UnicodeDecodeError):
    return []
  return text.rpartition(")")[2].split()


def _started(pid: int) -> str:
  """When a process started, to tell it from a later one with its number."""
  known = _stat(pid)
  return known[19] if known else ""


def _alive(entry: dict[str, Any]) -> bool:
  pid = int(entry["pid"])
  if pid == os.getpid():
    return entry["token"] in _HELD
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  if _stat(pid)[:1] == ["Z"]:  # killed, and nobody has asked for its status
    return False
  return _started(pid) == entry["started"]


class WorkdirLock:
  """The lock of one workdir; `acquire`, then `release`."""

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    lease: float = LEASE,
    end: Callable[[int], Any] = os._exit,
  ):
    """Touches nothing yet.

    Args:
      workdir: folder of the run, local or remote.
      lease: seconds without renewal after which a lock held on another host
        counts as left behind, and its holder ends itself.
      end: called with `status.LOST`; ends the process.
    """
    self._path = epath.Path(workdir) / FILE
    self._lease = lease
    self._end = end
    self._token = uuid.uuid4().hex
    self._beats = 0
    self._version: Any = None
    self._renewed = time.monotonic()
    self._ended = threading.Event()
    self._thread: threading.Thread | None = None

  def acquire(self) -> None:
    """Takes the lock.

    Raises:
      ConfigError: naming the holder, if there is one.
      TransientError: if the store does not answer for long.
    """
    files.make_folder(self._path.parent)
    self._record = record.open_record(self._path)
    holder, version = wait_out(self._read, f"reading {self._path}")
    if holder is not None and self._in_use(holder):
      since = time.strftime("%F %T", time.localtime(holder["time"]))
      raise ConfigError(
        f"workdir {str(self._path.parent)!r} is in use by process "
        f"{holder['pid']} on {holder['host'].split()[0]} since {since} "
        f"({holder['command']}); stop it or use another --workdir."
      )
    if holder is not None:
      progress.say(
        f"taking over {self._path}: process {holder['pid']} on "
        f"{holder['host'].split()[0]} is gone."
      )
    began = time.monotonic()
    # Before the file says so: another thread that reads it would otherwise take
    # this process for one of the same number that is gone.
    _HELD.add(self._token)
    taken = False
    try:
      taken = wait_out(lambda: self._take(version), f"writing {self._path}")
    finally:
      if not taken:
        _HELD.discard(self._token)
    if not taken:
      raise ConfigError(
        f"workdir {str(self._path.parent)!r} was taken by another process at "
        "the same moment; use another --workdir."
      )
    self._renewed = began
    self._thread = threading.Thread(target=self._keep, daemon=True)
    self._thread.start()
    threading.Thread(target=self._guard, daemon=True).start()

  def release(self) -> None:
    """Gives the lock back; does nothing without it."""
    self._ended.set()
    if self._token not in _HELD:
      return
    if self._thread is not None:
      self._thread.join(BEAT)
    _HELD.discard(self._token)

    def give_back() -> None:
      holder, version = self._read()
      if holder is not None and holder["token"] == self._token:
        self._record.delete(version)

    # One that cannot be removed counts as left behind: this process is gone.
    with contextlib.suppress(Exception):
      wait_out(give_back, f"removing {self._path}", patience=5.0, note=None)

  # ----------------------------------------------------------------- the file
  def _entry(self) -> dict[str, Any]:
    return {
      "token": self._token,
      "host": _host(),
      "pid": os.getpid(),
      "started": _started(os.getpid()),
      "time": time.time(),
      "beats": self._beats,
      "command": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:4]])[
        :200
      ],
    }

  def _read(self) -> tuple[dict[str, Any] | None, Any]:
    """The holder and the version of the file.

    The holder is None without a file or with one that a kill cut short.
    """
    text, version = self._record.read()
    try:
      entry = json.loads(text or b"")
      known = {"token", "host", "pid", "started"} <= set(entry)
      return (entry if known else None), version
    except (ValueError, TypeError):
      return None, version

  def _take(self, version: Any) -> bool:
    """Writes the file over a version; false if another process was faster."""
    self._beats += 1
    text = json.dumps(self._entry()).encode()
    while (new := self._record.swap(text, version)) is None:
      # The answer to a former write may have been lost: then the file is ours.
      holder, version = self._read()
      if holder is None or holder["token"] != self._token:
        return False
    self._version = new
    return True

  def _in_use(self, holder: dict[str, Any]) -> bool:
    if holder["host"] == _host():
      return _alive(holder)
    # Clocks of hosts differ, so see whether the file changes.
    progress.say(
      f"{self._path} is held on {holder['host'].split()[0]}; waiting up to "
      f"{self._lease:g} s to see whether that run still lives."
    )
    end = time.monotonic() + self._lease
    while time.monotonic() < end:
      time.sleep(min(1.0, self._lease / 4))
      now, _ = wait_out(self._read, f"reading {self._path}")
      if now is None:
        return False
      if (now["token"], now["beats"]) != (holder["token"], holder["beats"]):
        return True
    return False

  # ------------------------------------------------------------------ holding
  def _keep(self) -> None:
    """Renews the lock until it is released; errors are printed and retried."""
    while not self._ended.wait(BEAT):
      began = time.monotonic()
      try:
        mine = self._take(self._version)
      except BaseException as error:  # a full disk, a store out of reach
        failures.say(f"{self._path}: {failures.describe(error)}")
        continue
      if mine:
        self._renewed = began
      elif not self._ended.is_set():
        self._lost("was taken over by another process")

  def _guard(self) -> None:
    """Ends the run before another host may take over its lock."""
    while not self._ended.wait(min(BEAT, self._lease) / 4):
      silent = time.monotonic() - self._renewed
      if silent > self._lease and not self._ended.is_set():
        self._lost(f"could not be renewed for {silent:.0f} s")
        return

  def _lost(self, why: str) -> None:
    failures.say(
      f"{self._path} {why}; this run ends, start it again to resume."
    )
    self._end(status.LOST)
