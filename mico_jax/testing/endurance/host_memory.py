"""Memory of a program and the processes that it started, while it runs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator

_PROC = pathlib.Path("/proc")


def processes(root: int) -> list[int]:
  """A process and all that descend from it (Linux)."""
  parents: dict[int, int] = {}
  for entry in _PROC.iterdir():
    if entry.name.isdigit():
      with contextlib.suppress(OSError):
        # Behind the name, which may hold anything: state and parent.
        text = (entry / "stat").read_text().rpartition(")")[2]
        parents[int(entry.name)] = int(text.split()[1])
  found, at = [root], 0
  while at < len(found):
    found += [p for p, parent in parents.items() if parent == found[at]]
    at += 1
  return found


def shared_out(process: int, field: str = "Pss") -> int:
  """Bytes of a process, of shared pages its part (0 if it has ended).

  Args:
    process: its number.
    field: of `/proc/N/smaps_rollup`: "Pss" counts files that are mapped,
      "Pss_Anon" does not, "Rss" counts shared pages whole.
  """
  with contextlib.suppress(OSError):
    for line in (_PROC / str(process) / "smaps_rollup").read_text().split("\n"):
      if line.startswith(f"{field}:"):
        return int(line.split()[1]) * 1024
  return 0


def total(field: str = "Pss") -> int:
  """Bytes of this process and those that descend from it, see `shared_out`."""
  return sum(shared_out(p, field) for p in processes(os.getpid()))


class Peak:
  """The most memory of a host's processes, looked at every so often.

  Attributes:
    pss: most bytes of all processes together, files that are mapped included.
    anonymous: most bytes of it that no file backs.
    processes: most processes at a time.
  """

  def __init__(self) -> None:
    """Has seen nothing yet."""
    self.pss = self.anonymous = self.processes = 0

  def look(self) -> None:
    """Looks once."""
    tree = processes(os.getpid())
    self.pss = max(self.pss, sum(shared_out(p) for p in tree))
    anonymous = sum(shared_out(p, "Pss_Anon") for p in tree)
    self.anonymous = max(self.anonymous, anonymous)
    self.processes = max(self.processes, len(tree))


@contextlib.contextmanager
def peak(every: float = 0.25) -> Iterator[Peak]:
  """Looks every so many seconds, and at the end."""
  seen, end = Peak(), threading.Event()

  def watch() -> None:
    while not end.wait(every):
      seen.look()

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield seen
  finally:
    end.set()
    thread.join()
    seen.look()
