"""TPU kernel calls under `vmap` and on several devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mico_jax.kernels import target


def _folded(function: Callable[..., Any]) -> Callable[..., Any]:
  """Merges the axis of `vmap` into the rows (axis 0) of every array.

  A kernel then sees more rows instead of a grid of higher rank.
  """

  @jax.custom_batching.custom_vmap
  def call(*args: Any) -> Any:
    return function(*args)

  @call.def_vmap
  def _(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
    def join(x: Array, has_axis: bool) -> Array:
      if not has_axis:
        x = jnp.broadcast_to(x[None], (size, *x.shape))
      return x.reshape(size * x.shape[1], *x.shape[2:])

    out = call(*jax.tree.map(join, args, tuple(batched)))
    out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
    return out, jax.tree.map(lambda _: True, out)

  return call


def on_devices(
  plan: Any, function: Any, arrays: Any, rules: Any, sums: Any, grads: Any
) -> Any:
  """Calls a function on every device with its rows and heads.

  Args:
    plan: `StreamPlan` or `TilePlan` of one device.
    function: takes the local parts of the arguments below. The forward pass
      returns values and `sums`, the backward pass gradients of `arrays`.
    arrays: queries, keys and values, split by rows and heads.
    rules: arrays of the rules, split by rows.
    sums: logarithms of sums [B, groups, ...]; None in the forward pass.
    grads: gradients of the values; None in the forward pass.
  """
  call = functools.partial(_on_devices, plan, function)
  return _folded(call)(arrays, rules, sums, grads)


def _on_devices(
  plan: Any, function: Any, arrays: Any, rules: Any, sums: Any, grads: Any
) -> Any:
  machine = plan.machine
  if not splits(machine):
    return function(arrays, rules, sums, grads)
  spec = jax.sharding.PartitionSpec
  rows, heads = machine.batch_axes or None, machine.head_axes or None
  like = spec(rows, None, heads) if plan.lanes else spec(rows, heads)
  per_query = spec(rows, heads)
  backward = sums is not None
  return jax.shard_map(
    function,
    mesh=machine.mesh,
    in_specs=(like, spec(rows), per_query, like),
    out_specs=like if backward else (like, per_query),
    check_vma=False,
  )(arrays, rules, sums, grads)


def splits(machine: target.Target) -> bool:
  """Whether kernel calls have to be split over several devices here."""
  if machine.mesh is None or machine.mesh.size == 1:
    return False
  # Inside a shard_map of the caller, arrays are those of one device already.
  return not jax.sharding.get_abstract_mesh().manual_axes
