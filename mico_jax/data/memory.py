"""Whether the machine, container or process is short of memory (Linux)."""

from __future__ import annotations

import pathlib
import resource
from collections.abc import Iterator

LOW = 512 << 20  # bytes; with less, any allocation may fail

_CGROUP = pathlib.Path("/sys/fs/cgroup")


def memory_is_short() -> bool:
  """Whether under 512 MiB are left to machine, container or process."""
  return any(room < LOW for room in _rooms())


def _rooms() -> Iterator[int]:
  """Free bytes below each limit that can be read."""
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
  limit, used = _number("memory.max"), _number("memory.current")
  if limit is not None and used is not None:
    # What the kernel can drop again (cached files) counts as free.
    yield limit - used + _inactive_files()


def _number(name: str) -> int | None:
  """The number in a file of the container's cgroup; None if it has none."""
  try:
    return int((_CGROUP / name).read_text())
  except (OSError, ValueError):
    return None


def _inactive_files() -> int:
  try:
    text = (_CGROUP / "memory.stat").read_text()
    pairs = dict(line.split()[:2] for line in text.splitlines())
    return int(pairs.get("inactive_file", 0))
  except (OSError, ValueError):
    return 0
