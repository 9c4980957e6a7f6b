"""Times of an attention block on the local device.

`mico-jax bench block [--peers xla,torch]`: `x + attention(x W) V`, forward and
with all gradients, in turns with the same block around
`jax.nn.dot_product_attention` and, with "torch", in PyTorch. The share is
relative to the measured rate of a large matrix product (four projections and
attention, without recomputation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mico_jax.benchmarks import timing
from mico_jax.benchmarks.shapes import SHAPES, Shape
from mico_jax.kernels.attention import packed_attention

PEERS = ("xla", "torch")


def _ours(shape: Shape, qkv: jax.Array) -> jax.Array:
  return packed_attention(qkv, num_heads=shape.num_heads)


def _xla(shape: Shape, qkv: jax.Array) -> jax.Array:
  heads = (*qkv.shape[:2], shape.num_heads, shape.head_dim)
  q, k, v = (x.reshape(heads) for x in jnp.split(qkv, 3, axis=-1))
  out = jax.nn.dot_product_attention(q, k, v, implementation="xla")
  return out.reshape(*qkv.shape[:2], -1)


def _call(
  attend: Callable[..., jax.Array], shape: Shape, dtype: Any, *, backward: bool
) -> Callable[[], Any]:
  width = shape.num_heads * shape.head_dim
  sizes = (
    (shape.batch, shape.num_queries, width),
    (width, 3 * width),
    (width, width),
  )
  rng_keys = jax.random.split(jax.random.key(0), 3)
  arrays = [
    (jax.random.normal(rng_key, size) * width**-0.5).astype(dtype)
    for rng_key, size in zip(rng_keys, sizes, strict=True)
  ]

  def forward(x: jax.Array, w: jax.Array, out: jax.Array) -> jax.Array:
    return x + jnp.matmul(attend(shape, jnp.matmul(x, w)), out)

  def both(*arrays: jax.Array) -> Any:
    y, pullback = jax.vjp(forward, *arrays)
    return pullback(jnp.ones_like(y))

  return timing.waiting(jax.jit(both if backward else forward), *arrays)


def run(
  shapes: Sequence[str],
  *,
  peers: Sequence[str] = ("xla",),
  dtype: str = "",
  batch: int = 0,
  turns: int = 7,
) -> Iterator[dict[str, Any]]:
  """Measures the block of each packed shape.

  Args:
    shapes: names of `SHAPES`.
    peers: names of `PEERS`.
    dtype: of all arrays; "": bfloat16, float32 on a CPU.
    batch: rows; 0: those of the shape.
    turns: see `timing.alternate`.

  Yields:
    One record per shape, implementation and direction.
  """
  dtype = dtype or timing.default_dtype()
  kind = jnp.dtype(dtype)
  limit = timing.ceiling(kind)
  for name in shapes:
    shape = SHAPES[name].with_batch(batch)
    width = shape.num_heads * shape.head_dim
    length = shape.num_queries
    per_row = 2 * (4 * length * width**2 + 2 * length**2 * width)
    for backward in (False, True):
      calls = {"mico_jax": _call(_ours, shape, kind, backward=backward)}
      if "xla" in peers:
        calls["xla"] = _call(_xla, shape, kind, backward=backward)
      if "torch" in peers:
        from mico_jax.benchmarks import torch_peers

        calls["torch"] = torch_peers.block(
          shape, backward=backward, dtype=dtype
        )
      for record in timing.records(
        timing.alternate(calls, turns=turns),
        first="mico_jax",
        flops=shape.batch * per_row * (3 if backward else 1),
        limit=limit,
      ):
        yield {
          "shape": name,
          "pass": "forward+backward" if backward else "forward",
          **record,
        }
