"""Multi-process runs: start from environment variables, agree, exchange texts.

`launch/*.sh` set the variables; the command line calls `initialize_from_env`
before it uses a device:

  MICO_JAX_COORDINATOR     "host:port" of process 0, or "auto" (TPU pods, SLURM:
                           JAX finds everything by itself)
  MICO_JAX_NUM_PROCESSES   number of processes
  MICO_JAX_PROCESS_ID      0 ... number - 1
  MICO_JAX_LOCAL_DEVICES   ids of the devices this process uses, "0,1"; unset:
                           all
  MICO_JAX_HEARTBEAT       seconds without heartbeat after which a process is
                           considered lost and the others end (default 60)
  MICO_JAX_START_LIMIT     seconds to wait for other processes to start; then a
                           process names the missing ones and ends with status
                           75 (default 120)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

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

  Call it before the first JAX computation. Does nothing without
  MICO_JAX_COORDINATOR.

  Args:
    environment: variables; default `os.environ`.

  Returns:
    True if there are several processes.

  Raises:
    ConfigError: for a variable that is missing or not a number.
  """
  environment = os.environ if environment is None else environment
  coordinator = environment.get(COORDINATOR, "")
  if not coordinator:
    return False
  # CPU processes reach each other through gloo; ignored by other platforms.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # JAX's service would intercept SIGTERM, which `run.cluster.signals` handles.
  jax.config.update("jax_enable_preemption_service", False)
  heartbeat = integer(environment, HEARTBEAT, str(HEARTBEAT_SECONDS))
  limit = integer(
    environment, rendezvous.START_LIMIT, str(rendezvous.START_SECONDS)
  )
  if limit < 1:
    raise ConfigError(f"{rendezvous.START_LIMIT}={limit}: at least 1 second.")
  # Longer than the limit of the guard, since JAX aborts when its own ends.
  options: dict[str, Any] = {
    "heartbeat_timeout_seconds": heartbeat,
    "initialization_timeout": 2 * limit + 60,
  }
  if coordinator != "auto":
    options |= _named_process(environment, coordinator)
  complete = rendezvous.guard(environment, limit)
  try:
    jax.distributed.initialize(**options)
  finally:
    complete()
  return (options.get("num_processes") or jax.process_count()) > 1


def _named_process(
  environment: Mapping[str, str], coordinator: str
) -> dict[str, Any]:
  """Arguments of `jax.distributed.initialize` for a named coordinator.

  Raises:
    ConfigError: for a variable that is missing or out of range.
  """
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
  return {
    "coordinator_address": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
    "local_device_ids": devices,
  }


def is_main_process() -> bool:
  """True in the process that writes files and shows progress."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """True if the flag is set in any process; all processes must call it.

  With several processes it waits for all of them and for all queued steps; a
  training loop uses `run.cluster.agreement.StopVote` instead.
  """
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  flags = multihost_utils.process_allgather(np.asarray(flag, np.int32))
  return bool(np.any(flags))


def gather_texts(text: str) -> list[str]:
  """Texts of all processes, in their order; all processes must call it."""
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
  """Waits until every process has called it."""
  gather_texts("")


def agree(
  failure: Exception | None, *, kinds: Sequence[type[Exception]]
) -> None:
  """Raises in all processes if one failed; all processes must call it.

  All raise the same kind of exception, so that they continue in the same way.

  Args:
    failure: of this process; None: it succeeded.
    kinds: expected exceptions, from the mildest to the worst, each made from a
      message alone. Any other failure is worse than these; processes in which
      it did not occur raise RuntimeError.

  Raises:
    Exception: the worst kind of all failures; a process that failed in this
      way raises its own exception.
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

  Otherwise the other processes would wait for the failed one in their next
  collective.

  Args:
    function: has no collectives itself.

  Returns:
    The result of the function in this process.

  Raises:
    Exception: the exception that the function raised in this process.
    ConfigError: naming another process in which it failed, and why.
  """
  if jax.process_count() == 1:
    return function()
  try:
    value, failure = function(), None
  except Exception as e:
    value, failure = None, e
  message = " ".join(str(failure).split()) or "failed"
  texts = gather_texts("" if failure is None else message)
  if failure is not None:
    raise failure
  for process, text in enumerate(texts):
    if text:
      raise ConfigError(f"process {process}: {text}")
  return cast(T, value)
