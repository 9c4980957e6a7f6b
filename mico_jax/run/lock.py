"""One run at a time in a workdir: `<workdir>/lock.json`.

The file names the holder, which renews it every few seconds. It counts as left
behind when its process on this host is gone or, held on another host, when it
is not renewed for a while: a killed run therefore resumes by itself, here at
once and elsewhere after `LEASE` seconds. Only process 0 of a run holds it.
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
from typing import Any

from etils import epath

from mico_jax.config import ConfigError
from mico_jax.run import progress, status

FILE = "lock.json"
BEAT = 10.0  # seconds between renewals
LEASE = 40.0  # seconds without renewal after which another host may take over
_SETTLE = 0.2  # seconds until a store shows what another process wrote

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

  def __init__(self, workdir: epath.PathLike, *, lease: float = LEASE):
    """Touches nothing yet.

    Args:
      workdir: folder of the run, local or remote.
      lease: seconds without renewal after which a lock held on another host
        counts as left behind.
    """
    self._path = epath.Path(workdir) / FILE
    self._lease = lease
    self._token = uuid.uuid4().hex
    self._beats = 0
    self._ended = threading.Event()
    self._thread: threading.Thread | None = None

  def acquire(self) -> None:
    """Takes the lock.

    Raises:
      ConfigError: naming the holder, if there is one.
    """
    self._path.parent.mkdir(parents=True, exist_ok=True)
    holder = self._read()
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
    self._write(new=not self._path.exists())
    now = self._settled()
    if now is None or now["token"] != self._token:
      raise ConfigError(
        f"workdir {str(self._path.parent)!r} was taken by another process at "
        "the same moment; use another --workdir."
      )
    _HELD.add(self._token)
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def release(self) -> None:
    """Gives the lock back; does nothing without it."""
    self._ended.set()
    if self._token not in _HELD:
      return
    if self._thread is not None:
      self._thread.join(BEAT)
    _HELD.discard(self._token)
    holder = self._read()
    if holder is not None and holder["token"] == self._token:
      with contextlib.suppress(OSError):
        self._path.unlink()

  # ----------------------------------------------------------------- the file
  def _entry(self) -> dict[str, Any]:
    return {
      "token": self._token,
      "host": _host(),
      "pid": os.getpid(),
      "started": _started(os.getpid()),
      "time": time.time(),
      "beats": self._beats,
      "command": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:4]]),
    }

  def _read(self) -> dict[str, Any] | None:
    """The holder; None without a file or with one that a kill cut short."""
    try:
      entry = json.loads(self._path.read_text())
      return (
        entry if {"token", "host", "pid", "started"} <= set(entry) else None
      )
    except (FileNotFoundError, ValueError, TypeError):
      return None

  def _write(self, *, new: bool) -> None:
    self._beats += 1
    text = json.dumps(self._entry())
    if "://" in str(self._path):
      self._path.write_text(text)
      return
    part = self._path.with_name(f"{FILE}.{self._token[:8]}")
    part.write_text(text)
    try:
      # A link fails where the name exists; a replacement does not.
      if new:
        os.link(part, self._path)
        part.unlink()
      else:
        part.replace(self._path)
    except FileExistsError:
      part.unlink()
    except OSError:  # a file system without links
      part.replace(self._path)

  def _settled(self) -> dict[str, Any] | None:
    if "://" in str(self._path):
      time.sleep(_SETTLE)
    return self._read()

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
      now = self._read()
      if now is None:
        return False
      if (now["token"], now["beats"]) != (holder["token"], holder["beats"]):
        return True
    return False

  def _renew(self) -> None:
    while not self._ended.wait(BEAT):
      try:
        holder = self._read()
        if holder is not None and holder["token"] != self._token:
          progress.say(
            f"{self._path} was taken over by process {holder['pid']} on "
            f"{holder['host'].split()[0]}; this run ends."
          )
          os._exit(status.LOST)
        self._write(new=False)
      except OSError as e:  # A full disk or a store out of reach: try again.
        progress.say(f"{self._path}: {e}")
