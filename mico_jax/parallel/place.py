"""The place of this process in its run, from environment variables."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from mico_jax.config import ConfigError

COORDINATOR = "MICO_JAX_COORDINATOR"
NUM_PROCESSES = "MICO_JAX_NUM_PROCESSES"
PROCESS_ID = "MICO_JAX_PROCESS_ID"

_TPU_PORT = 8476  # JAX's own default on TPUs
_METADATA = (
  "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
)


@dataclass(frozen=True)
class Place:
  """The place of this process in its run.

  Attributes:
    process: index of this process.
    hosts: name of each expected process, in order.
    address: of process 0.
    port: on which process 0 listens for the others (`parallel.rendezvous`).
  """

  process: int
  hosts: tuple[str, ...]
  address: str
  port: int


def integer(
  environment: Mapping[str, str], name: str, default: str = ""
) -> int:
  """The integer in a variable.

  Raises:
    ConfigError: naming the variable, if it is unset or not an integer.
  """
  text = environment.get(name, default)
  try:
    return int(text)
  except ValueError:
    raise ConfigError(
      f"{name}={text!r}: expected a number, since {COORDINATOR} is set; "
      "launch/local.sh sets all of them."
    ) from None


def _metadata(name: str) -> str:
  request = urllib.request.Request(
    _METADATA + name, headers={"Metadata-Flavor": "Google"}
  )
  with urllib.request.urlopen(request, timeout=5) as answer:
    return answer.read().decode()


def find_place(
  environment: Mapping[str, str] | None = None, *, hosts: int = 0
) -> Place:
  """The place of this process, from the variables of launch/* or of a TPU.

  Args:
    environment: variables; default `os.environ`.
    hosts: expected number of processes; 0: from the environment.

  Raises:
    ConfigError: if the environment describes no run of several processes.
  """
  environment = os.environ if environment is None else environment
  coordinator = environment.get(COORDINATOR, "auto")
  if coordinator != "auto":
    address, _, port = coordinator.rpartition(":")
    number = lambda name: integer(environment, name)
    count = hosts or number(NUM_PROCESSES)
    names = tuple(f"process {i}" for i in range(count))
    process = number(PROCESS_ID)
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
