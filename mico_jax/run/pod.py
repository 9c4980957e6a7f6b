"""`mico-jax doctor --pod`: are all hosts of a run there, equal and connected?

Every host calls it. Process 0 listens on the port behind the coordinator's; the
others tell it who they are. Thus a missing host is named even though JAX itself
would only wait for it. When all are there they start JAX and add up one number
over all devices.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mico_jax.checkpoint import manifest
from mico_jax.config import ConfigError
from mico_jax.parallel import distributed
from mico_jax.run.agreement import MAX_CLOCK_DIFFERENCE

LIMIT = 60.0  # seconds
_TPU_PORT = 8476  # JAX's own default on TPUs
_METADATA = (
  "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
)


@dataclass(frozen=True)
class Place:
  """Where this process stands in its run.

  Attributes:
    process: its number.
    hosts: name of each expected process, in order.
    address: of process 0.
    port: that process 0 listens on for this check.
  """

  process: int
  hosts: tuple[str, ...]
  address: str
  port: int


def _metadata(name: str) -> str:
  request = urllib.request.Request(
    _METADATA + name, headers={"Metadata-Flavor": "Google"}
  )
  with urllib.request.urlopen(request, timeout=5) as answer:
    return answer.read().decode()


def find_place(
  environment: Mapping[str, str] | None = None, *, hosts: int = 0
) -> Place:
  """This process' place, from the variables of launch/* or of a TPU.

  Args:
    environment: variables; default `os.environ`.
    hosts: expected number of processes; 0: as the environment says.

  Raises:
    ConfigError: if the environment describes no run of several processes.
  """
  environment = os.environ if environment is None else environment
  coordinator = environment.get(distributed.COORDINATOR, "auto")
  if coordinator != "auto":
    address, _, port = coordinator.rpartition(":")
    number = lambda name: distributed.integer(environment, name)
    count = hosts or number(distributed.NUM_PROCESSES)
    names = tuple(f"process {i}" for i in range(count))
    process = number(distributed.PROCESS_ID)
    return Place(process, names, address, int(port) + 1)
  if environment.get("TPU_WORKER_HOSTNAMES"):
    names = tuple(environment["TPU_WORKER_HOSTNAMES"].split(","))
    process = int(environment.get("TPU_WORKER_ID", "0"))
  else:
    try:
      # "id:name:address,...", one for each host.
      entries = _metadata("worker-network-endpoints").split(",")
      names = tuple(entry.split(":")[-1] for entry in entries)
      process = int(_metadata("agent-worker-number"))
    except OSError as e:
      raise ConfigError(
        "this is no host of a pod: neither MICO_JAX_COORDINATOR (set by "
        "launch/*) nor TPU_WORKER_HOSTNAMES is set, and there is no metadata "
        f"server ({e})."
      ) from None
  names += tuple(f"process {i}" for i in range(len(names), hosts))
  return Place(process, names, names[0], _TPU_PORT + 1)


def card(place: Place) -> dict[str, Any]:
  """What a host tells about itself."""
  return {
    "process": place.process,
    "host": socket.gethostname(),
    "clock": time.time(),
    "versions": manifest.versions(),
  }


def _collect(place: Place, end: float) -> list[dict[str, Any]]:
  """Process 0: takes the cards of the others and sends all of them back."""
  cards = {place.process: card(place)}
  waiting: list[socket.socket] = []
  with socket.create_server(("", place.port), backlog=1024) as server:
    while len(cards) < len(place.hosts) and time.monotonic() < end:
      server.settimeout(max(end - time.monotonic(), 0.01))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        break
      connection.settimeout(5)
      with (
        contextlib.suppress(OSError, ValueError, KeyError),
        connection.makefile("r") as file,
      ):
        told = json.loads(file.readline())
        # Told at the moment it arrives, so that clocks can be compared.
        told["late"] = told["clock"] - time.time()
        cards[told["process"]] = told
      waiting.append(connection)
    found = [cards[i] for i in sorted(cards)]
    answer = (json.dumps(found) + "\n").encode()
    for connection in waiting:
      with contextlib.suppress(OSError), connection:
        connection.sendall(answer)
  return found


def _tell(place: Place, end: float) -> list[dict[str, Any]]:
  """Another process: tells process 0 and waits for its answer."""
  while time.monotonic() < end:
    with contextlib.suppress(OSError, ValueError):
      left = max(end - time.monotonic(), 0.1)
      address = (place.address, place.port)
      with socket.create_connection(address, timeout=left) as connection:
        connection.settimeout(left + 2)  # process 0 answers at its own end
        connection.sendall((json.dumps(card(place)) + "\n").encode())
        with connection.makefile("r") as file:
          return json.loads(file.readline())
    time.sleep(0.2)
  return [card(place)]


def problems(place: Place, cards: Sequence[Mapping[str, Any]]) -> list[str]:
  """What is wrong with the hosts that were seen; empty: nothing."""
  seen = {c["process"]: c for c in cards}
  found = []
  if 0 not in seen:
    found.append(f"no answer from {place.hosts[0]} ({place.address})")
  else:
    missing = [i for i in range(len(place.hosts)) if i not in seen]
    found += [f"missing: {place.hosts[i]} (process {i})" for i in missing]
  first = seen.get(0, cards[0])
  for process, other in seen.items():
    name = f"{other['host']} (process {process})"
    lines = manifest.differences(first["versions"], other["versions"])
    if lines:
      found.append(f"{name} has other versions: {'; '.join(lines[:3])}")
    if abs(other.get("late", 0.0)) > MAX_CLOCK_DIFFERENCE:
      found.append(f"the clock of {name} is {other['late']:+.0f} s off")
  return found


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[None]:
  """What libraries print to stdout goes to stderr (gloo tells of its peers)."""
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
  found = distributed.gather_texts(str(jax.local_device_count()))
  total = sum(map(int, found))
  if total != jax.device_count():
    return [f"devices: {found} do not add up to {jax.device_count()}"]
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
  gathering = _collect if place.process == 0 else _tell
  cards = gathering(place, began + limit * 2 / 3)
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
