"""Several processes: start from the environment, agree on a flag.

`launch/*.sh` set the variables, the command line calls `initialize_from_env`
before it touches a device:

  MICO_JAX_COORDINATOR     "host:port" of process 0, or "auto" (TPU pods, SLURM:
                           JAX finds everything by itself)
  MICO_JAX_NUM_PROCESSES   number of processes
  MICO_JAX_PROCESS_ID      0 ... number - 1
  MICO_JAX_LOCAL_DEVICES   ids of the devices this process uses, "0,1"; unset:
                           all
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax
import numpy as np

from mico_jax.config import ConfigError

COORDINATOR = "MICO_JAX_COORDINATOR"
NUM_PROCESSES = "MICO_JAX_NUM_PROCESSES"
PROCESS_ID = "MICO_JAX_PROCESS_ID"
LOCAL_DEVICES = "MICO_JAX_LOCAL_DEVICES"


def _integer(environment: Mapping[str, str], name: str) -> int:
  text = environment.get(name, "")
  try:
    return int(text)
  except ValueError:
    raise ConfigError(
      f"{name}={text!r}: expected a number, since {COORDINATOR} is set; "
      "launch/local.sh sets all of them."
    ) from None


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
  # Its service would swallow SIGTERM; `mico_jax.run.signals` handles that.
  jax.config.update("jax_enable_preemption_service", False)
  if coordinator == "auto":
    jax.distributed.initialize()
    return jax.process_count() > 1
  num_processes = _integer(environment, NUM_PROCESSES)
  process_id = _integer(environment, PROCESS_ID)
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
  jax.distributed.initialize(
    coordinator_address=coordinator,
    num_processes=num_processes,
    process_id=process_id,
    local_device_ids=devices,
  )
  return num_processes > 1


def is_main_process() -> bool:
  """True in the process that writes files and shows progress."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """True if the flag is set in any process; all processes must call it.

  With one process this costs nothing; with more it is a small collective that
  waits for everyone, so ask every few steps.
  """
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  flags = multihost_utils.process_allgather(np.asarray(flag, np.int32))
  return bool(np.any(flags))
