"""How rows, parameters and kernels lie on a mesh while a step is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jax.sharding import Mesh

from mico_jax import axes
from mico_jax.kernels import target
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.layers.fsdp_gather import placed
from mico_jax.parallel import sharding


def _mesh_axes(logical: str, rules: sharding.Rules) -> tuple[str, ...]:
  """Mesh axes over which a logical axis is split."""
  spec = sharding.spec((logical,), rules)
  names = spec[0] if spec else ()
  return (names,) if isinstance(names, str) else tuple(names or ())


def row_partition(mesh: Mesh, rules: sharding.Rules) -> BatchSharding | None:
  """How the rows of a batch lie on the mesh; None: on one device."""
  partition = BatchSharding(mesh, _mesh_axes(axes.BATCH, rules))
  return partition if partition.size > 1 else None


@contextlib.contextmanager
def kernels_on(mesh: Mesh, rules: sharding.Rules) -> Iterator[None]:
  """While tracing: parameters are laid out, kernels run on each device.

  Args:
    mesh: of the run.
    rules: logical axis -> mesh axes.
  """

  def over(logical: str) -> tuple[str, ...]:
    names = _mesh_axes(logical, rules)
    return tuple(name for name in names if mesh.shape[name] > 1)

  split = target.split(
    mesh,
    batch_axes=over(axes.BATCH),
    head_axes=over(axes.QKV),
    sequence_axes=over(axes.TOKENS),
  )
  with placed(mesh, rules), split:
    yield
