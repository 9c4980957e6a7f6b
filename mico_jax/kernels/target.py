"""The machine that kernels are traced for.

It is the default backend of JAX unless `use` sets another one: to compile ahead
of time for devices that are absent, to run TPU kernels in the interpreter, or
to trace a step only to count its operations. The target is read during tracing,
so trace inside `use`, and trace a new function object: JAX caches the trace of
a function that it has seen before.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import logging
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

MIB = 2**20
# VMEM of a TensorCore in MiB, and the side of its matrix unit (MXU).
GENERATIONS: dict[str, tuple[int, int]] = {
  "v4": (16, 128),
  "v5e": (128, 128),
  "v5p": (64, 128),
  "v6e": (128, 256),
  "tpu7x": (64, 256),
}
_KINDS = (  # substring of `device_kind` -> generation; the first match counts
  ("v5 lite", "v5e"),
  ("v5lite", "v5e"),
  ("v5e", "v5e"),
  ("v5", "v5p"),
  ("v6", "v6e"),
  ("tpu7x", "tpu7x"),
  ("v7", "tpu7x"),
  ("v4", "v4"),
)


@dataclasses.dataclass(frozen=True)
class Target:
  """A platform and how kernel calls are split over its devices.

  Attributes:
    platform: "cpu", "gpu" or "tpu".
    generation: of a TPU, a key of `GENERATIONS`; "" on other platforms and for
      a TPU that is not in the table.
    interpret: run TPU kernels in the interpreter of Pallas.
    mesh: devices over which a kernel call is split, or None.
    batch_axes: axes of `mesh` over which rows are split.
    head_axes: axes of `mesh` over which heads are split.
    sequence_axes: axes of `mesh` over which the tokens of a row are split.
    devices: number of devices over which the caller may have sharded arrays
      although `mesh` is None.
    capability: compute capability of a GPU, such as 8.0; 0.0: unknown.
    plain: the trace only counts operations: attention and logits are computed
      whole, once, in plain JAX, and nothing is logged.
  """

  platform: str
  generation: str = ""
  interpret: Any = False
  mesh: Mesh | None = None
  batch_axes: tuple[str, ...] = ()
  head_axes: tuple[str, ...] = ()
  sequence_axes: tuple[str, ...] = ()
  devices: int = 1
  capability: float = 0.0
  plain: bool = False

  @property
  def vmem(self) -> int:
    """Bytes of VMEM that a kernel may plan with."""
    return GENERATIONS.get(self.generation, (16, 128))[0] * MIB

  @property
  def matrix_unit(self) -> int:
    """Side of the matrix unit."""
    return GENERATIONS.get(self.generation, (16, 128))[1]

  def parts(self, axes: tuple[str, ...]) -> int:
    """Number of devices along some axes of the mesh; 1 without a mesh."""
    if self.mesh is None:
      return 1
    return math.prod(self.mesh.shape[name] for name in axes)


_current: contextvars.ContextVar[Target | None] = contextvars.ContextVar(
  "mico_jax_kernel_target", default=None
)


def generation_of(device_kind: str) -> str:
  """The generation of a `Device.device_kind`; "" if unknown."""
  kind = device_kind.lower()
  return next((name for part, name in _KINDS if part in kind), "")


def current() -> Target:
  """The target set by `use`, else the default backend of JAX."""
  target = _current.get()
  if target is not None:
    return target
  platform = jax.default_backend()
  if platform == "gpu":
    number = getattr(jax.devices()[0], "compute_capability", 0.0)
    return Target(platform, capability=float(number or 0.0))
  if platform != "tpu":
    return Target(platform)
  kind = jax.devices()[0].device_kind
  return Target(platform, generation_of(kind), devices=jax.device_count())


@contextlib.contextmanager
def use(target: Target) -> Iterator[Target]:
  """Sets the machine for functions traced inside."""
  token = _current.set(target)
  try:
    yield target
  finally:
    _current.reset(token)


@contextlib.contextmanager
def alone() -> Iterator[Target]:
  """Tells kernels traced inside that their arrays are on one device."""
  with use(dataclasses.replace(current(), devices=1)) as target:
    yield target


@contextlib.contextmanager
def split(
  mesh: Mesh,
  *,
  batch_axes: tuple[str, ...] = (),
  head_axes: tuple[str, ...] = (),
  sequence_axes: tuple[str, ...] = (),
) -> Iterator[Target]:
  """Runs kernels traced inside per device, on its rows, heads and tokens.

  XLA cannot partition a Pallas call; under a mesh of several devices the
  dispatch of a kernel wraps it in a `shard_map` over these axes.

  Args:
    mesh: of the run.
    batch_axes: over which rows are split.
    head_axes: over which heads are split.
    sequence_axes: over which the tokens of a row are split.
  """
  target = dataclasses.replace(
    current(),
    mesh=mesh,
    batch_axes=batch_axes,
    head_axes=head_axes,
    sequence_axes=sequence_axes,
  )
  with use(target):
    yield target


@functools.cache
def _log(name: str, message: str) -> None:
  logging.getLogger(name).info("%s", message)


def log_once(name: str, message: str) -> None:
  """Logs the choice of a backend, once per process; not for `plain` targets.

  Args:
    name: of the logger.
    message: one line.
  """
  if not current().plain:
    _log(name, message)
