"""FLOPs of a step by its parts, counted in a jaxpr.

Counts every matrix product and convolution, times the trip counts of the loops
around it (once where they are unknown), with two operations per multiply-add.
Everything else (softmax, norms, optimizer) is below 2% and left out; masked
positions of attention count, since they are multiplied. Which operations belong
to the model, and which are recomputation: `mico_jax.train.flops.trace_model`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mico_jax.plan.parts import part_of
from mico_jax.train.flops import inner_jaxprs, product_flops, repeats

# cuDNN's attention: number of products of size L x S x H by direction.
_CUDNN = (("dot_product_attention_fwd", 2), ("dot_product_attention_bwd", 5))


def _cudnn(eqn: Any) -> float | None:
  """FLOPs of cuDNN's attention; None for another operation."""
  for name, products in _CUDNN:
    if eqn.primitive.name.startswith(name):
      rows, queries, heads, size = eqn.invars[0].aval.shape
      keys = eqn.invars[1].aval.shape[1]
      return 2.0 * products * rows * queries * heads * size * keys
  return None


def count(jaxpr: Any) -> dict[str, float]:
  """FLOPs of the products in a jaxpr by part of the step (`parts.table`)."""
  flops: dict[str, float] = defaultdict(float)

  def visit(inner: Any, times: float, scope: str) -> None:
    for eqn in inner.eqns:
      path = f"{scope}/{eqn.source_info.name_stack}"
      product = product_flops(eqn)
      if product is None:
        product = _cudnn(eqn)
      if product is not None:
        flops[part_of(path)] += times * product
        continue
      name = eqn.primitive.name
      if name == "pallas_call":
        continue
      bodies = [j for v in eqn.params.values() for j in inner_jaxprs(v)]
      if name == "cond":
        # Which branch runs is unknown; they differ little here.
        bodies = bodies[-1:]
      elif name.startswith(("custom_vjp_call", "custom_jvp_call")):
        bodies = bodies[:1]  # the function; its rules are other parameters
      for body in bodies:
        visit(body, times * repeats(eqn), path)

  visit(jaxpr, 1.0, "")
  return dict(flops)
