"""Model FLOPs of a step, counted in its jaxpr: for MFU.

Only products count (matrix products and convolutions, a multiplication and an
addition each), as is usual for MFU; loops count each turn, parts under
`shard_map` each shard. `trace_model` traces loss and gradient without
rematerialisation, micro-batches and Pallas kernels, so recomputation that saves
memory and the padding of tiles are no model FLOPs. Captions count as if every
position were scored, because the number that is scored depends on the texts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mico_jax import models
from mico_jax.aliases import PyTree, SpecialIds
from mico_jax.config import Config, TaskConfig
from mico_jax.kernels import target
from mico_jax.train.optimizer import Optimizer
from mico_jax.train.step import make_loss

# Peak of one JAX device in bfloat16 (float16 for T4 and V100), dense, without
# sparsity, in FLOP/s, by `device_kind`. Sources: the vendors' data sheets;
# a device of TPU v2, v3 and 7x is one of the two cores of a chip.
PEAK_FLOPS: Mapping[str, float] = {
  "TPU v2": 22.5e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 1153.5e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-PCIE-40GB": 312e12,
  "NVIDIA A10G": 70e12,
  "NVIDIA L4": 121e12,
  "Tesla T4": 65e12,
  "Tesla V100-SXM2-16GB": 125e12,
}

# `jax.checkpoint` (by both of its names), kernels of Pallas and cuDNN, loops.
_NOT_PLAIN = (
  "checkpoint",
  "remat",
  "pallas_call",
  "dot_product_attention",
  "while",
)


def peak_flops(device: Any) -> float | None:
  """Peak of a device in FLOP/s; None where it is not known (a CPU)."""
  return PEAK_FLOPS.get(device.device_kind)


def _dot_general(eqn: Any) -> int:
  (contract, _), _ = eqn.params["dimension_numbers"]
  left = eqn.invars[0].aval.shape
  depth = math.prod(left[i] for i in contract)
  return 2 * math.prod(eqn.outvars[0].aval.shape) * depth


def _convolution(eqn: Any) -> int:
  kernel = eqn.invars[1].aval.shape
  layout = eqn.params["dimension_numbers"]
  outputs = kernel[layout.rhs_spec[0]]
  per_output = math.prod(kernel) // outputs  # input features x window
  return 2 * math.prod(eqn.outvars[0].aval.shape) * per_output


def product_flops(eqn: Any) -> int | None:
  """FLOPs of an equation that is a product; None: it is none."""
  if eqn.primitive.name == "dot_general":
    return _dot_general(eqn)
  if eqn.primitive.name == "conv_general_dilated":
    return _convolution(eqn)
  return None


def inner_jaxprs(value: Any) -> Iterator[Any]:
  """The jaxprs in a parameter of an equation."""
  if isinstance(value, (tuple, list)):
    for part in value:
      yield from inner_jaxprs(part)
  elif hasattr(value, "eqns"):
    yield value
  elif hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns"):
    yield value.jaxpr


def repeats(eqn: Any) -> int:
  """How often the inner jaxprs of an equation run."""
  name, params = eqn.primitive.name, eqn.params
  if name == "scan":
    return int(params["length"])
  if name == "shard_map":
    sizes = params["mesh"].shape
    return math.prod(sizes[a] for a in params.get("manual_axes", sizes))
  if name == "pallas_call":
    return math.prod(int(n) for n in params["grid_mapping"].grid)
  return 1


def count_flops(jaxpr: Any) -> int:
  """FLOPs of the products in a jaxpr, those of inner jaxprs included.

  A `while` loop of unknown length counts one turn, a `cond` its most expensive
  branch.

  Args:
    jaxpr: `jax.make_jaxpr(f)(...)` or the `.jaxpr` of a traced function.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  total = 0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    product = product_flops(eqn)
    if product is not None:
      total += product
    elif name == "cond":
      total += max(count_flops(b) for b in eqn.params["branches"])
    elif name in ("custom_jvp_call", "custom_vjp_call"):
      # The function itself; its rules are other parameters.
      inner = next(inner_jaxprs(list(eqn.params.values())), None)
      total += count_flops(inner) if inner is not None else 0
    else:
      inner = [j for v in eqn.params.values() for j in inner_jaxprs(v)]
      if inner:
        total += repeats(eqn) * sum(count_flops(j) for j in inner)
  return total


def is_plain(jaxpr: Any) -> bool:
  """Whether a jaxpr holds every product once, and where they can be counted.

  It does not if products are computed again in the backward pass, are inside a
  kernel, or in a loop of an unknown number of turns.

  Args:
    jaxpr: see `count_flops`.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  for eqn in jaxpr.eqns:
    if eqn.primitive.name.startswith(_NOT_PLAIN):
      return False
    for value in eqn.params.values():
      if not all(is_plain(inner) for inner in inner_jaxprs(value)):
        return False
  return True


def trace_model(
  config: Config,
  task: TaskConfig,
  tokenizer: SpecialIds,
  *,
  optimizer: Optimizer,
  params: PyTree,
  batch: PyTree,
) -> Any:
  """The jaxpr of a task's loss and gradient over its global batch, all once.

  Args:
    config: of the run.
    task: one of its tasks.
    tokenizer: special ids.
    optimizer: of the run; its frozen parameters get no gradient.
    params: shapes of the parameters.
    batch: shapes of the global batch.
  """
  model = models.build(dataclasses.replace(config.model, remat="none"))
  loss = make_loss(model, config, task, tokenizer)

  def gradient(params: PyTree, batch: PyTree) -> PyTree:
    value = lambda p: loss(
      optimizer.freeze(p), batch, step=jnp.zeros((), jnp.int32)
    )[0]
    return jax.grad(value)(params)

  with target.use(target.Target("cpu", plain=True)):
    return jax.make_jaxpr(gradient)(params, batch).jaxpr


def mfu(
  flops: float, seconds: float, devices: int, device: Any
) -> float | None:
  """Share of the peak that model FLOPs reached; None for an unknown device.

  Args:
    flops: of all steps, on all devices together.
    seconds: they took.
    devices: number of devices.
    device: one of them.
  """
  peak = peak_flops(device)
  if peak is None or seconds <= 0:
    return None
  return flops / (seconds * devices * peak)
