"""Several processes: start from the environment, agree on a flag.

`launch/*.sh` set the variables, the command line calls `initialize_from_env`
before it touches a device:

  MICO_JAX_COORDINATOR     "host:port" of process 0, or "auto" (TPU pods, SLURM:
                           JAX finds everything by itself)
  MICO_JAX_NUM_PROCESSES   number of processes
  MICO_JAX_PROCESS_ID      0 ... number - 1
  MICO_JAX_LOCAL_DEVICES   ids of the devices this process uses, "0,1"; unset:
                           all
  MICO_JAX_HEARTBEAT       seconds of silence after which a process counts as
                           lost and the others end (default 60)
  MICO_JAX_START_LIMIT     seconds after which a process that waits for others
                           to start names them and ends with status 75
                           (default 120)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import jax
import numpy as np

from mico_jax.config import ConfigError
from mico_jax.parallel import rendezvous
from mico_jax.parallel.place import (
  COORDINATOR,
  NUM_PROCESSES,
  PROCESS_ID,
  integer,
)

LOCAL_DEVICES = "MICO_JAX_LOCAL_DEVICES"
HEARTBEAT = "MICO_JAX_HEARTBEAT"

HEARTBEAT_SECONDS = 60
T = TypeVar("T")


def initialize_from_env(environment: Mapping[str, str] | None = None) -> bool:
  """Joins the other processes, if the environment names a coordinator.

  Must run before the first JAX computation. Does nothing without
  MICO_JAX_COORDINATOR.

  Args:
    environment: variables; default `os.environ`.

  Returns:
    True if there are several processes.

  Raises:
    ConfigError: for a variable that is missing or no number.
  """
  environment = os.environ if environment is None else environment
  coordinator = environment.get(COORDINATOR, "")
  if not coordinator:
    return False
  # CPU processes reach each other through gloo; ignored by other platforms.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # Its service would swallow SIGTERM, which `run.cluster.signals` handles.
  jax.config.update("jax_enable_preemption_service", False)
  silence = integer(environment, HEARTBEAT, str(HEARTBEAT_SECONDS))
  limit = integer(
    environment, rendezvous.START_LIMIT, str(rendezvous.START_SECONDS)
  )
  if limit < 1:
    raise ConfigError(f"{rendezvous.START_LIMIT}={limit}: at least 1 second.")
  # Longer than the guard's: JAX aborts where it cannot wait any longer.
  options = {
    "heartbeat_timeout_seconds": silence,
    "initialization_timeout": 2 * limit + 60,
  }
  if coordinator == "auto":
    complete = rendezvous.guard(environment, limit)
    try:
      jax.distributed.initialize(**options)
    finally:
      complete()
    return jax.process_count() > 1
  num_processes = integer(environment, NUM_PROCESSES)
  process_id = integer(environment, PROCESS_ID)
  if not 0 <= process_id < num_processes:
    raise ConfigError(
      f"{PROCESS_ID}={process_id} must lie in [0, {num_processes}); "
      f"{NUM_PROCESSES}={num_processes}."
    )
  text = environment.get(LOCAL_DEVICES, "")
  try:
    devices = [int(x) for x in text.split(",")] if text else None
  except ValueError:
    raise ConfigError(
      f"{LOCAL_DEVICES}={text!r}: expected ids such as 0,1."
    ) from None
  complete = rendezvous.guard(environment, limit)
  try:
    jax.distributed.initialize(
      coordinator_address=coordinator,
      num_processes=num_processes,
      process_id=process_id,
      local_device_ids=devices,
      **options,
    )
  finally:
    complete()
  return num_processes > 1


def is_main_process() -> bool:
  """True in the process that writes files and shows progress."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """True if the flag is set in any process; all processes must call it.

  With one process this costs nothing; with more it waits for everyone and for
  all steps that are queued, so a loop asks `run.cluster.agreement.StopVote`.
  """
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  flags = multihost_utils.process_allgather(np.asarray(flag, np.int32))
  return bool(np.any(flags))


def gather_texts(text: str) -> list[str]:
  """The text of every process, in their order; all processes must call it."""
  if jax.process_count() == 1:
    return [text]
  from jax.experimental import multihost_utils

  data = np.frombuffer(text.encode(), np.uint8)
  sizes = np.asarray(
    multihost_utils.process_allgather(np.asarray(data.size, np.int32))
  ).ravel()
  padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
  padded[: data.size] = data
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [
    row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
  ]


def barrier() -> None:
  """Waits until every process is here."""
  gather_texts("")


def agree(
  failure: Exception | None, *, kinds: Sequence[type[Exception]]
) -> None:
  """If anything failed in a process, all raise; all processes must call it.

  They raise the same kind, so that they go on in the same way.

  Args:
    failure: of this process; None: it did well.
    kinds: that are expected, from the mildest to the worst, each with a
      message alone; any other failure is worse still and raised as RuntimeError
      where it did not occur.

  Raises:
    Exception: the worst kind of all failures, its own where it has one.
  """
  if jax.process_count() == 1:
    if failure is not None:
      raise failure
    return
  ranks = [i for i, kind in enumerate(kinds) if isinstance(failure, kind)]
  rank = -1 if failure is None else max(ranks, default=len(kinds))
  words = " ".join(str(failure).split()) or type(failure).__name__
  notes = [json.loads(x) for x in gather_texts(json.dumps([rank, words]))]
  worst = max(one for one, _ in notes)
  if worst < 0:
    return
  if failure is not None and rank == worst:
    raise failure
  process = [one for one, _ in notes].index(worst)
  kind = kinds[worst] if worst < len(kinds) else RuntimeError
  raise kind(f"process {process}: {notes[process][1]}")


def together(function: Callable[[], T]) -> T:
  """Calls a function in every process; if it fails in one, it fails in all.

  Without this, the others would wait for the failed one in their next
  collective.

  Args:
    function: what each process does; holds no collective itself.

  Returns:
    What it returned here.

  Raises:
    Exception: what it raised here.
    ConfigError: naming another process in which it failed, and why.
  """
  if jax.process_count() == 1:
    return function()
  try:
    value, failure = function(), None
  except Exception as e:
    value, failure = None, e
  said = "" if failure is None else " ".join(str(failure).split()) or "failed"
  texts = gather_texts(said)
  if failure is not None:
    raise failure
  for process, text in enumerate(texts):
    if text:
      raise ConfigError(f"process {process}: {text}")
  return cast(T, value)
