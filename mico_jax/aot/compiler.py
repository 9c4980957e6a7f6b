"""The TPU compiler (libtpu) on a machine without a TPU.

Needs the extra `aot` (libtpu, x86-64 Linux; no TPU, no root).

libtpu reads its flags when it is loaded, so call `prepare` before the first
compilation of a process; a process dumps into one folder. Flags set by the user
(LIBTPU_INIT_ARGS) are kept.

For large steps the compiler's recursion exceeds the 64 KiB stack of its fibers
("SIGSEGV STACK OVERFLOW"), so `prepare` asks for stacks of 1 MiB. If a run on a
TPU fails in this way while it compiles, set
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

from mico_jax import extras
from mico_jax.aot.chips import CHIPS, chip

_DUMP_FLAGS = (
  "--xla_jf_dump_to=",
  "--xla_jf_dump_llo_text=",
  "--xla_jf_dump_llo_pass_label_regex=",
)
_STACK_FLAG = "--fibers_default_thread_stack_size=1048576"
_folder: pathlib.Path | None = None


def missing() -> str | None:
  """The reason why nothing can be compiled here, or None."""
  if importlib.util.find_spec("libtpu") is None:
    return f"libtpu is not installed; {extras.install('aot')}"
  return None


def prepare() -> pathlib.Path:
  """Sets the environment of libtpu, at the first call of a process.

  Returns:
    The folder into which bundles are dumped, removed when the process ends.

  Raises:
    RuntimeError: if libtpu is missing.
  """
  global _folder
  if _folder is not None:
    return _folder
  if reason := missing():
    raise RuntimeError(reason)
  _folder = pathlib.Path(tempfile.mkdtemp(prefix="mico_jax_aot"))
  atexit.register(shutil.rmtree, _folder, ignore_errors=True)
  values = (str(_folder), "true", "final_bundles")
  dumps = [flag + x for flag, x in zip(_DUMP_FLAGS, values, strict=True)]
  os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    LIBTPU_INIT_ARGS=" ".join([_STACK_FLAG, *user_flags().split(), *dumps]),
  )
  return _folder


def user_flags() -> str:
  """The user's flags for libtpu, without those that `prepare` sets."""
  flags = os.environ.get("LIBTPU_INIT_ARGS", "").split()
  ours = (_STACK_FLAG, *_DUMP_FLAGS)
  return " ".join(flag for flag in flags if not flag.startswith(ours))


def devices(topology: str) -> Sequence[Any]:
  """Descriptions of the devices of a slice, to compile for.

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
  """Sharding that places whole arrays on the first device of a slice."""
  mesh = Mesh(np.array(devices(topology)[:1]), ("device",))
  return NamedSharding(mesh, PartitionSpec())
