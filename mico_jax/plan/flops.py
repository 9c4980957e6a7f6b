"""Model FLOPs of a step, counted in its jaxpr.

Every matrix product and convolution of loss and gradient, times the trip counts
of the loops around it, two operations for each multiplication and addition.
Traced without rematerialisation, micro-batches and kernels of our own, so what
is computed a second time to save memory does not count. Everything else
(softmax, norms, optimizer) is below 2% and left out; masked positions of an
attention count as they are multiplied.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp

from mico_jax.config import Config, TaskConfig
from mico_jax.objectives.draws import SpecialIds
from mico_jax.plan.hlo import part_of
from mico_jax.train.flops import inner_jaxprs, product_flops, repeats
from mico_jax.train.optimizer import Optimizer
from mico_jax.train.step import make_loss
from mico_jax.types import PyTree

# cuDNN's attention: products of queries and keys in each direction.
_CUDNN = (("dot_product_attention_fwd", 2), ("dot_product_attention_bwd", 5))


def _cudnn(eqn: Any) -> float | None:
  """FLOPs of cuDNN's attention; None: it is something else."""
  for name, products in _CUDNN:
    if eqn.primitive.name.startswith(name):
      rows, queries, heads, size = eqn.invars[0].aval.shape
      keys = eqn.invars[1].aval.shape[1]
      return 2.0 * products * rows * queries * heads * size * keys
  return None


def count(jaxpr: Any) -> dict[str, float]:
  """FLOPs of the products in a jaxpr by part of the step (`hlo.PARTS`)."""
  found: dict[str, float] = defaultdict(float)

  def visit(inner: Any, times: float, scope: str) -> None:
    for eqn in inner.eqns:
      path = f"{scope}/{eqn.source_info.name_stack}"
      product = product_flops(eqn)
      if product is None:
        product = _cudnn(eqn)
      if product is not None:
        found[part_of(path)] += times * product
        continue
      name = eqn.primitive.name
      if name == "pallas_call":
        continue
      bodies = [j for v in eqn.params.values() for j in inner_jaxprs(v)]
      if name == "cond":
        # Which branch runs is not known; they differ little here.
        bodies = bodies[-1:]
      elif name.startswith(("custom_vjp_call", "custom_jvp_call")):
        bodies = bodies[:1]  # the function; its rules are other parameters
      for body in bodies:
        visit(body, times * repeats(eqn), path)

  visit(jaxpr, 1.0, "")
  return dict(found)


def plain(config: Config) -> Config:
  """The config whose step computes everything once, in XLA's own operations."""
  model = dataclasses.replace(config.model, remat="none", attention="xla")
  return dataclasses.replace(config, model=model)


def of_task(
  model: Any,
  config: Config,
  task: TaskConfig,
  tokenizer: SpecialIds,
  optimizer: Optimizer,
  params: PyTree,
  batch: PyTree,
) -> dict[str, float]:
  """Model FLOPs of one training step over its global batch.

  Args:
    model: of the plain config.
    config: from `plain`.
    task: one of its tasks.
    tokenizer: special ids.
    optimizer: of the run; it says what is frozen.
    params: shapes of the parameters.
    batch: shapes of the global batch.
  """
  loss = make_loss(model, config, task, tokenizer)

  def gradient(params: PyTree, batch: PyTree) -> PyTree:
    value = lambda p: loss(
      optimizer.freeze(p), batch, step=jnp.zeros((), jnp.int32)
    )[0]
    return jax.grad(value)(params)

  return count(jax.make_jaxpr(gradient)(params, batch).jaxpr)
