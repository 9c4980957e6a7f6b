"""Which machine the kernels of a trace are for.

Normally the default backend of JAX. Three cases differ and say so by `use`: a
program compiled ahead of time for a slice that is not there, a test that runs
TPU kernels in the interpreter, and a step that is traced only to count its
operations. What `use` sets is read while a function is
traced, so trace inside it, and trace a function of your own: JAX remembers the
trace of a function that it has seen before.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

MIB = 2**20
# VMEM of a TensorCore in MiB, and the side of its matrix unit.
GENERATIONS: dict[str, tuple[int, int]] = {
  "v4": (16, 128),
  "v5e": (128, 128),
  "v5p": (64, 128),
  "v6e": (128, 256),
  "tpu7x": (64, 256),
}
_KINDS = (  # part of `device_kind` -> generation; the first that fits
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
  """The machine.

  Attributes:
    platform: "cpu", "gpu" or "tpu".
    generation: of a TPU, a key of `GENERATIONS`; "" on other platforms and for
      a TPU that is not in the table.
    interpret: run TPU kernels in the interpreter of Pallas.
    mesh: devices over which a kernel call is split, or None.
    batch_axes: axes of `mesh` over which rows are split.
    head_axes: axes of `mesh` over which heads are split.
    sequence_axes: axes of `mesh` over which the tokens of a row are split.
    devices: that arrays may be spread over without a word to the kernels.
    capability: compute capability of a GPU, such as 8.0; 0.0: unknown.
    plain: only operations are to be counted: attention and logits are whole,
      in plain JAX and computed once, and nothing is logged.
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


_current: contextvars.ContextVar[Target | None] = contextvars.ContextVar(
  "mico_jax_kernel_target", default=None
)


def generation_of(device_kind: str) -> str:
  """The generation of a `Device.device_kind`; "" if unknown."""
  kind = device_kind.lower()
  return next((name for part, name in _KINDS if part in kind), "")


def current() -> Target:
  """What `use` set, else the default backend of JAX."""
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
  """Functions traced inside are for this machine."""
  token = _current.set(target)
  try:
    yield target
  finally:
    _current.reset(token)


@contextlib.contextmanager
def alone() -> Iterator[Target]:
  """Functions traced inside run on one device, however many there are."""
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
  """Kernels traced inside run once per device on its rows, heads and tokens.

  XLA cannot partition a Pallas call; under a mesh of several devices the door
  of a kernel puts it into a `shard_map` over these axes.

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
