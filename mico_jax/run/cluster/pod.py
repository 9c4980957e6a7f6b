"""`mico-jax doctor --pod`: are all hosts of a run there, equal and connected?

Every host calls it. They meet first (`parallel.rendezvous`), so that a missing
host is named even though JAX itself would only wait for it. When all are there
they start JAX and add up one number over all devices.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mico_jax.checkpoint import manifest
from mico_jax.parallel import distributed, rendezvous
from mico_jax.parallel.place import Place
from mico_jax.run.cluster.agreement import MAX_CLOCK_DIFFERENCE

LIMIT = 60.0  # seconds


def card(place: Place) -> dict[str, Any]:
  """Facts about this host that the others compare."""
  return {
    "process": place.process,
    "host": socket.gethostname(),
    "clock": time.time(),
    "versions": manifest.versions(),
  }


def problems(place: Place, cards: Sequence[Mapping[str, Any]]) -> list[str]:
  """One line for each problem of the hosts; empty: none."""
  seen = {c["process"]: c for c in cards}
  problems = []
  if 0 not in seen:
    problems.append(f"no answer from {place.hosts[0]} ({place.address})")
  else:
    missing = [i for i in range(len(place.hosts)) if i not in seen]
    problems += [f"missing: {place.hosts[i]} (process {i})" for i in missing]
  first = seen.get(0, cards[0])
  for process, other in seen.items():
    name = f"{other['host']} (process {process})"
    lines = manifest.differences(first["versions"], other["versions"])
    if lines:
      problems.append(f"{name} has other versions: {'; '.join(lines[:3])}")
    if abs(other.get("late", 0.0)) > MAX_CLOCK_DIFFERENCE:
      problems.append(f"the clock of {name} is {other['late']:+.0f} s off")
  return problems


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[None]:
  """Redirects stdout to stderr, as gloo prints about its peers."""
  sys.stdout.flush()
  former = os.dup(1)
  try:
    os.dup2(2, 1)
    yield
  finally:
    os.dup2(former, 1)
    os.close(former)


def _collective(count: int) -> list[str]:
  """Starts JAX on all hosts and adds up one number over all devices."""
  distributed.initialize_from_env()
  import jax

  if jax.process_count() != count:
    return [f"JAX sees {jax.process_count()} processes, expected {count}"]
  counts = distributed.gather_texts(str(jax.local_device_count()))
  total = sum(map(int, counts))
  if total != jax.device_count():
    return [f"devices: {counts} do not add up to {jax.device_count()}"]
  return []


def check(place: Place, *, limit: float = LIMIT) -> dict[str, Any]:
  """Checks the pod; every host calls it at about the same time.

  Args:
    place: of this process.
    limit: seconds for everything.

  Returns:
    JSON types: "expected", "seen", "hosts", "problems" (empty: all is well) and
    "seconds".
  """
  began = time.monotonic()
  # A third is kept for JAX.
  describe = lambda: card(place)
  cards = rendezvous.gather(place, describe, began + limit * 2 / 3)
  wrong = problems(place, cards)
  if not wrong and len(place.hosts) > 1:
    result: list[str] = []
    done = threading.Event()

    def run() -> None:
      try:
        result.extend(_collective(len(place.hosts)))
      except Exception as e:
        result.append(f"the collective failed: {' '.join(str(e).split())}")
      done.set()

    with _stdout_for_results():
      threading.Thread(target=run, daemon=True).start()
      ended = done.wait(max(began + limit - time.monotonic(), 1.0))
    if not ended:
      result = [f"no collective within {limit:g} s: is the network closed?"]
    wrong = result
  return {
    "expected": len(place.hosts),
    "seen": len(cards),
    "hosts": [c["host"] for c in cards],
    "versions": cards[0]["versions"],
    "problems": wrong,
    "seconds": round(time.monotonic() - began, 1),
  }
