"""The one place with `nn.scan` and `nn.remat`: a stack of equal blocks.

Parameters are stacked on axis 0 (`axes.LAYERS`), whether the stack runs as a
loop or unrolled, so both read the same checkpoint; code that only reads them
may keep those of each layer apart (`split_layers`). A block is a Linen module,
called as `block(x, layer, shared) -> (x, out)`: `layer` holds arrays that
differ from layer to layer (leading axis P), `shared` the others; `out` is
stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mico_jax import axes
from mico_jax.aliases import PyTree
from mico_jax.kernels.attention import ATTENTION_SUMS
from mico_jax.layers.attention import ATTENTION_OUT, ATTENTION_QKV, INSPECTED
from mico_jax.layers.fsdp_gather import split_tokens

_policies = jax.checkpoint_policies

# Name -> arrays of the forward pass kept for the backward pass. None: all.
REMAT: dict[str, Callable[..., Any] | None] = {
  "none": None,
  "full": _policies.nothing_saveable,
  "attention": _policies.save_only_these_names(ATTENTION_OUT, ATTENTION_SUMS),
  "attention_qkv": _policies.save_only_these_names(
    ATTENTION_QKV, ATTENTION_OUT, ATTENTION_SUMS
  ),
  # As "attention", but kept in the host's memory until the backward pass.
  "attention_on_host": _policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[ATTENTION_OUT, ATTENTION_SUMS],
    offload_src="device",
    offload_dst="pinned_host",
  ),
  "dots": _policies.dots_saveable,
  "dots_no_batch": _policies.dots_with_no_batch_dims_saveable,
}


def stack(
  block: type[nn.Module],
  options: Mapping[str, Any],
  *,
  depth: int,
  scan: bool,
  remat: str,
  name: str,
) -> Callable[..., Any]:
  """A function that applies `depth` blocks; call it inside a compact method.

  Args:
    block: class of the block.
    options: attributes of every block.
    depth: number of blocks, P.
    scan: one compiled body run P times; false: P copies of it.
    remat: key of `REMAT`.
    name: of the parameters.

  Raises:
    ValueError: for an unknown policy.
  """
  if remat not in REMAT:
    raise ValueError(
      f"{remat=} is no policy; set config.model.remat to one of "
      f"{', '.join(REMAT)}."
    )
  if REMAT[remat] is not None:
    block = nn.remat(block, policy=REMAT[remat], prevent_cse=not scan)
  scanned = nn.scan(
    block,
    variable_axes={"params": 0, INSPECTED: 0},
    split_rngs={"params": True},
    in_axes=(0, nn.broadcast),
    out_axes=0,
    length=depth,
    unroll=1 if scan else depth,
    metadata_params={nn.PARTITION_NAME: axes.LAYERS},
  )
  blocks = scanned(**options, name=name)
  return lambda x, *rest: blocks(split_tokens(x), *rest)


def split_layers(params: PyTree) -> PyTree:
  """Parameters whose stacked arrays are tuples of one array for each layer.

  XLA copies a layer's slice of a stacked array before it is used, and on a CPU
  that takes as long as a forward pass of one image. Unrolled (`scan=False`), an
  array that `stacked_layers` puts together is never made: its slices are the
  parts. Models take such parameters in place of stacked ones.
  """
  return jax.tree.map_with_path(
    lambda path, x: tuple(x) if _is_stacked(path) else x, params
  )


def stacked_layers(params: PyTree) -> PyTree:
  """The inverse of `split_layers`; stacked arrays stay as they are."""
  return jax.tree.map(
    lambda x: jnp.stack(x) if isinstance(x, tuple) else x,
    params,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def _is_stacked(path: tuple[Any, ...]) -> bool:
  return any(getattr(entry, "key", None) == "blocks" for entry in path)
