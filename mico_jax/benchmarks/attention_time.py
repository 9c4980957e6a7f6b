"""Times of attention and its peers on the local device.

`mico-jax bench attention [--peer torch]` runs each shape forward, and forward
with backward, in alternating turns (`benchmarks/timing.py`). It gives the
median, the spread, the largest error of the values against float64 divided by
their largest value, and the share of the measured rate of a large matrix
product (model FLOPs: 2 products forward, 4 more backward, without
recomputation).

Peers: "xla" is `jax.nn.dot_product_attention`, "cudnn" the same with cuDNN,
"flash" and "splash" are JAX's TPU kernels with their best block, "tokamax" is
that library's default where it is installed, "torch" is PyTorch's
scaled_dot_product_attention.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mico_jax.benchmarks import timing
from mico_jax.benchmarks.attention import PEER_BLOCKS, peer_attention
from mico_jax.benchmarks.shapes import SHAPES, Shape
from mico_jax.kernels.attention import attention, packed_attention

Attend = Callable[..., jax.Array]
PEERS = ("xla", "cudnn", "flash", "splash", "tokamax", "torch")
_EXACT_HEADS = 2  # heads that are compared with float64


def inputs(shape: Shape, dtype: Any) -> tuple[jax.Array, ...]:
  """Random q, k, v [B, L, N, H]."""
  rng_keys = jax.random.split(jax.random.key(0), 3)
  heads = (shape.num_heads, shape.head_dim)
  lengths = (shape.num_queries, shape.num_keys, shape.num_keys)
  return tuple(
    jax.random.normal(rng_key, (shape.batch, length, *heads)).astype(dtype)
    for rng_key, length in zip(rng_keys, lengths, strict=True)
  )


def ours(shape: Shape) -> Attend:
  """This package's attention, packed if the shape is."""
  if not shape.packed:
    return attention

  def packed(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    flat = [x.reshape(*x.shape[:2], -1) for x in (q, k, v)]
    out = packed_attention(
      jnp.concatenate(flat, axis=-1), num_heads=shape.num_heads
    )
    return out.reshape(q.shape)

  return packed


def _tokamax() -> Attend:
  if importlib.util.find_spec("tokamax") is None:
    raise NotImplementedError("tokamax is not installed")
  import tokamax  # type: ignore[import-not-found]

  return tokamax.dot_product_attention


def peers_of(name: str, shape: Shape) -> dict[str, Attend]:
  """Variants of a JAX peer, by name.

  Raises:
    NotImplementedError: if it cannot run here.
  """
  platform = jax.default_backend()
  if name == "xla":
    return {
      "": functools.partial(jax.nn.dot_product_attention, implementation="xla")
    }
  if name == "cudnn":
    if platform != "gpu":
      raise NotImplementedError(f"platform is {platform}, not gpu")
    return {
      "": functools.partial(
        jax.nn.dot_product_attention, implementation="cudnn"
      )
    }
  if name == "tokamax":
    return {"": _tokamax()}
  if platform != "tpu":
    raise NotImplementedError(f"platform is {platform}, not tpu")
  longest = max(shape.num_queries, shape.num_keys)
  apart = dataclasses.replace(shape, packed=False)
  return {
    f"block {block}": peer_attention(name, apart, block)
    for block in PEER_BLOCKS
    if block <= max(longest, PEER_BLOCKS[0])
  }


def exact(arrays: Sequence[jax.Array]) -> Float[np.ndarray, "L N H"]:
  """Values of the first row and heads in float64, with NumPy."""
  q, k, v = (
    np.asarray(x[0, :, :_EXACT_HEADS].astype(jnp.float32), np.float64)
    for x in arrays
  )
  scores = np.einsum("lnh,snh->nls", q, k) * q.shape[-1] ** -0.5
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("nls,snh->lnh", weights, v)


def _error(attend: Attend, arrays: Sequence[jax.Array]) -> float:
  want = exact(arrays)
  got = jax.jit(attend)(*arrays)[0, :, :_EXACT_HEADS]
  got = np.asarray(got.astype(jnp.float32), np.float64)
  return float(np.abs(got - want).max() / np.abs(want).max())


def _call(
  attend: Attend, arrays: Sequence[jax.Array], *, backward: bool
) -> Callable[[], Any]:
  if not backward:
    return timing.waiting(jax.jit(attend), *arrays)

  def both(*arrays: jax.Array) -> Any:
    out, pullback = jax.vjp(attend, *arrays)
    return pullback(jnp.ones_like(out))

  return timing.waiting(jax.jit(both), *arrays)


def measure(
  shape: Shape,
  *,
  peers: Sequence[str],
  backward: bool,
  dtype: Any,
  turns: int,
  limit: float,
) -> list[dict[str, Any]]:
  """One record for this package and for each variant of each peer.

  Args:
    shape: attention problem.
    peers: names of `PEERS`.
    backward: whether to include all gradients.
    dtype: of the inputs.
    turns: see `timing.alternate`.
    limit: measured rate of a matrix product, in FLOP/s.
  """
  arrays = inputs(shape, dtype)
  variants: dict[str, Attend] = {"mico_jax": ours(shape)}
  refused: dict[str, str] = {}
  calls: dict[str, Callable[[], Any]] = {}
  for name in peers:
    if name == "torch":
      from mico_jax.benchmarks import torch_peers

      calls["torch"] = torch_peers.attention(
        shape, backward=backward, dtype=jnp.dtype(dtype).name
      )
      continue
    try:
      peer = peers_of(name, shape)
    except NotImplementedError as error:
      refused[name] = str(error)
      continue
    variants |= {f"{name} {form}".strip(): f for form, f in peer.items()}
  errors = {}
  for name, attend in variants.items():
    call = _call(attend, arrays, backward=backward)
    try:
      call()
      errors[name] = _error(attend, arrays)
    except Exception as error:  # whatever a peer raises
      if name == "mico_jax":
        raise
      refused[name] = str(error).splitlines()[0][:100]
      continue
    calls[name] = call
  products = 6 if backward else 2
  pairs = shape.batch * shape.num_heads * shape.num_queries * shape.num_keys
  records = timing.records(
    timing.alternate(calls, turns=turns),
    first="mico_jax",
    flops=2 * products * pairs * shape.head_dim,
    limit=limit,
  )
  for record in records:
    if (name := record["implementation"]) in errors:
      record["error"] = float(f"{errors[name]:.2g}")
  records += [
    {"implementation": name, "refused": reason}
    for name, reason in refused.items()
  ]
  return records


def run(
  shapes: Sequence[str],
  *,
  peers: Sequence[str] = ("xla",),
  dtype: str = "",
  batch: int = 0,
  turns: int = 7,
) -> Iterator[dict[str, Any]]:
  """Measures each shape, forward and forward with backward.

  Args:
    shapes: names of `SHAPES`.
    peers: names of `PEERS`.
    dtype: of the inputs; "": bfloat16, float32 on a CPU.
    batch: rows; 0: those of the shape.
    turns: see `timing.alternate`.

  Yields:
    One record per shape, implementation and direction.
  """
  dtype = dtype or timing.default_dtype()
  limit = timing.ceiling(jnp.dtype(dtype))
  for name in shapes:
    shape = SHAPES[name].with_batch(batch)
    for backward in (False, True):
      for record in measure(
        shape,
        peers=peers,
        backward=backward,
        dtype=jnp.dtype(dtype),
        turns=turns,
        limit=limit,
      ):
        yield {
          "shape": name,
          "pass": "forward+backward" if backward else "forward",
          **record,
        }
