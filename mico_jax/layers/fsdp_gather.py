"""Shardings of arrays inside a model, while it is traced.

Parameters that are split over the `fsdp` axis are gathered where a layer uses
them, inside the loop over layers, so that one layer is whole at a time; their
gradients are scattered back at once. Without this the compiler may choose to
move activations instead. Tokens are split over the `sequence` axis where a
stack of blocks begins. Outside `placed` nothing here does anything.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from mico_jax import axes

_FREE = PartitionSpec.UNCONSTRAINED


@dataclass(frozen=True)
class Placement:
  """A mesh and the rules of a run.

  Attributes:
    mesh: of the run.
    rules: logical axis -> mesh axes.
  """

  mesh: Mesh
  rules: Mapping[str, Any]

  def _names(self, logical: str) -> tuple[str, ...]:
    target = self.rules[logical]
    names = (target,) if isinstance(target, str) else tuple(target or ())
    return tuple(name for name in names if self.mesh.shape[name] > 1)

  def sharding(
    self, names: tuple[str, ...], shape: tuple[int, ...], *, gathered: bool
  ) -> NamedSharding:
    """Sharding of a parameter: stored, or in use by a layer (`gathered`).

    Args:
      names: logical axis of each dimension.
      shape: of the parameter.
      gathered: whole along `axes.FSDP`.
    """
    used: set[str] = set()
    parts: list[Any] = []
    for name, size in zip(names, shape, strict=True):
      wanted = self._names(name)
      if used.intersection(wanted):
        wanted = ()
      used.update(wanted)
      if gathered:
        wanted = tuple(axis for axis in wanted if axis != axes.FSDP)
      if size % math.prod(self.mesh.shape[axis] for axis in wanted):
        wanted = ()
      parts.append(wanted or None)
    return NamedSharding(self.mesh, PartitionSpec(*parts))


_ACTIVE: ContextVar[Placement | None] = ContextVar("placement", default=None)


@contextlib.contextmanager
def placed(mesh: Mesh, rules: Any) -> Iterator[None]:
  """While tracing inside: parameters are gathered, tokens of stacks split.

  Args:
    mesh: of the run.
    rules: pairs of logical axis and mesh axes, see `mico_jax.axes.RULES`.
  """
  token = _ACTIVE.set(Placement(mesh, dict(rules)) if mesh.size > 1 else None)
  try:
    yield
  finally:
    _ACTIVE.reset(token)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(
  value: Shaped[Array, "..."], used: NamedSharding, kept: NamedSharding
) -> Shaped[Array, "..."]:
  """The value laid out for use; its gradient as it is kept."""
  del kept
  return jax.lax.with_sharding_constraint(value, used)


def _gather_fwd(
  value: Shaped[Array, "..."], used: NamedSharding, kept: NamedSharding
) -> tuple[Shaped[Array, "..."], None]:
  del kept
  return jax.lax.with_sharding_constraint(value, used), None


def _gather_bwd(
  used: NamedSharding, kept: NamedSharding, _: None, grad: Shaped[Array, "..."]
) -> tuple[Shaped[Array, "..."]]:
  del used
  return (jax.lax.with_sharding_constraint(grad, kept),)


_gather.defvjp(_gather_fwd, _gather_bwd)


def gathered(
  value: Float[Array, "..."], names: tuple[str, ...]
) -> Float[Array, "..."]:
  """A parameter for use in a layer: whole along the `fsdp` axis.

  Args:
    value: the parameter of one layer.
    names: logical axis of each dimension.
  """
  active = _ACTIVE.get()
  if active is None or value.ndim != len(names):
    return value
  used = active.sharding(names, value.shape, gathered=True)
  kept = active.sharding(names, value.shape, gathered=False)
  return value if used == kept else _gather(value, used, kept)


def split_tokens(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
  """Tokens [B L D], split along L where the rules split `axes.TOKENS`."""
  active = _ACTIVE.get()
  names = active._names(axes.TOKENS) if active else ()
  if active is None or not names or x.ndim != 3:
    return x
  sharding = NamedSharding(active.mesh, PartitionSpec(_FREE, names, _FREE))
  return jax.lax.with_sharding_constraint(x, sharding)
