"""Calls of a TPU kernel under `vmap` and on several devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mico_jax.kernels import target


def _folded(function: Callable[..., Any]) -> Callable[..., Any]:
  """Under `vmap`, the new axis joins the rows (axis 0) of every array.

  So a kernel sees more rows, not a grid of another rank.
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
  """Calls a function of local arrays on every device with its rows and heads.

  Args:
    plan: of one device: a `StreamPlan` or a plan of `pallas_tpu`.
    function: of the arguments that follow; returns arrays like `arrays` with
      `sums`, or like `arrays` alone in the backward pass.
    arrays: with heads.
    rules: with rows only.
    sums: logarithms of sums [B, groups, ...], or None in the forward pass.
    grads: like `arrays`, or None in the forward pass.
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
  """Whether arrays are of several devices here, and calls to be split."""
  if machine.mesh is None or machine.mesh.size == 1:
    return False
  # Inside a shard_map of the caller, the arrays are of one device already.
  return not jax.sharding.get_abstract_mesh().manual_axes
