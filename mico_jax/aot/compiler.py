"""The compiler of TPUs on a machine without one.

Needs `pip install mico-jax[aot]` (libtpu, x86-64 Linux; no TPU, no root).

libtpu reads its flags when it is loaded, so `prepare` comes before the first
compilation of a process, and one process dumps into one folder. Flags that the
user gives (LIBTPU_INIT_ARGS) are kept.

Its compiler nests estimates of fused products deeper than the 64 KiB stack of
its fibers and dies of it ("SIGSEGV STACK OVERFLOW") with large steps, so stacks
of 1 MiB are asked for. Where a run on a TPU dies of that while it compiles, set
LIBTPU_INIT_ARGS=--fibers_default_thread_stack_size=1048576.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mico_jax.aot.chips import CHIPS, chip

_DUMP_FLAGS = (
  "--xla_jf_dump_to=",
  "--xla_jf_dump_llo_text=",
  "--xla_jf_dump_llo_pass_label_regex=",
)
_STACK_FLAG = "--fibers_default_thread_stack_size=1048576"
_folder: pathlib.Path | None = None


def missing() -> str | None:
  """Why nothing can be compiled here, or None."""
  if importlib.util.find_spec("libtpu") is None:
    return "libtpu is not installed; pip install mico-jax[aot]"
  return None


def prepare(folder: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Sets the environment of libtpu; the first call of a process decides.

  Args:
    folder: where bundles are dumped; None: a new temporary folder, which goes
      with the process.

  Returns:
    The folder in use.

  Raises:
    RuntimeError: if libtpu is missing.
  """
  global _folder
  if _folder is not None:
    return _folder
  if reason := missing():
    raise RuntimeError(reason)
  if folder is None:
    folder = tempfile.mkdtemp(prefix="mico_jax_aot")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
  _folder = pathlib.Path(folder)
  _folder.mkdir(parents=True, exist_ok=True)
  values = (str(_folder), "true", "final_bundles")
  own = [flag + x for flag, x in zip(_DUMP_FLAGS, values, strict=True)]
  os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    LIBTPU_INIT_ARGS=" ".join([_STACK_FLAG, *user_flags().split(), *own]),
  )
  return _folder


def user_flags() -> str:
  """The user's flags for libtpu, without those of `prepare`."""
  given = os.environ.get("LIBTPU_INIT_ARGS", "").split()
  own = (_STACK_FLAG, *_DUMP_FLAGS)
  return " ".join(flag for flag in given if not flag.startswith(own))


def devices(topology: str) -> Sequence[Any]:
  """The devices of a slice, as far as a compiler needs them.

  Raises:
    ValueError: for a slice that the compiler does not know.
  """
  chip(topology)
  prepare()
  from jax.experimental import topologies

  full = topology if ":" in topology else CHIPS[topology].topology
  try:
    description: Any = topologies.get_topology_desc(
      platform="tpu", topology_name=full
    )
  except JaxRuntimeError as error:
    if not str(error).startswith("INVALID_ARGUMENT"):
      raise
    raise ValueError(
      f"topology {topology!r}: no slice of that shape "
      f"({' '.join(str(error).split())[:160]})."
    ) from error
  return description.devices


def one_device(topology: str) -> NamedSharding:
  """A sharding that places whole arrays on the first device of a slice."""
  mesh = Mesh(np.array(devices(topology)[:1]), ("device",))
  return NamedSharding(mesh, PartitionSpec())
