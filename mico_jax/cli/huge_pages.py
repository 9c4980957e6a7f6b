"""Large memory pages for steps on a CPU.

XLA allocates the memory of a step anew at every step, and faulting in its 4 KiB
pages costs up to a quarter of a small step's time. glibc can ask for 2 MiB
pages instead, but reads that setting only when a process starts; so the command
restarts its own process once (same process id, before other imports).
"""

from __future__ import annotations

import os
import pathlib
import platform
import sys

COMMANDS = ("pretrain", "sweep")
VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
_KERNEL = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def wanted(command: str | None) -> bool:
  """Whether the process should start again with large pages."""
  if command not in COMMANDS or TUNABLE in os.environ.get(VARIABLE, ""):
    return False
  if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
    return False
  try:
    return "[madvise]" in _KERNEL.read_text(encoding="ascii")
  except OSError:
    return False


def restart_with_huge_pages(command: str | None) -> None:
  """Replaces this process by itself with large pages, where that helps.

  Set GLIBC_TUNABLES=glibc.malloc.hugetlb=0 to keep the process as it is.

  Args:
    command: of `mico-jax`; only those that train ask for it.
  """
  if not wanted(command):
    return
  others = os.environ.get(VARIABLE)
  tunables = f"{others}:{TUNABLE}=1" if others else f"{TUNABLE}=1"
  os.environ[VARIABLE] = tunables
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
