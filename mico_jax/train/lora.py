"""Low-rank deltas: train A and B of  W + alpha / rank * A @ B  only.

Deltas live in the parameter tree under the top key "lora", as
{"<path of the kernel>": {"a": [*, in, rank], "b": [*, rank, out]}}; the step
merges them functionally, so the model never knows. Kernels stacked over layers
have stacked deltas. B starts at zero: training starts from the given weights.

Source: arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mico_jax.aliases import Params, PyTree
from mico_jax.config import ConfigError, OptimizerConfig
from mico_jax.train import selection

KEY = "lora"


def init(
  rng_key: Key[Array, ""], params: Params, config: OptimizerConfig
) -> dict[str, Any]:
  """Deltas for every kernel that `config.lora_targets` selects.

  Args:
    rng_key: of the draw of A.
    params: the parameters (or their shapes).
    config: `lora_rank` and `lora_targets`.

  Raises:
    ConfigError: if a target matches nothing or something that is no kernel.
  """
  selection.check_patterns(
    config.lora_targets, params, field="optimizer.lora_targets"
  )
  deltas: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = selection.path_name(path)
    if not selection.matches(config.lora_targets, name):
      continue
    if leaf.ndim != 2 + selection.is_stacked(name):
      raise ConfigError(
        f"optimizer.lora_targets selects {name!r} of shape {leaf.shape}, which "
        "is not a kernel [in, out] (or one per layer); narrow the pattern."
      )
    *stack, rows, columns = leaf.shape
    rank = config.lora_rank
    rng_key, leaf_key = jax.random.split(rng_key)
    deltas[name] = {
      "a": jax.random.normal(leaf_key, (*stack, rows, rank)) * rows**-0.5,
      "b": jnp.zeros((*stack, rank, columns)),
    }
  return deltas


def merge(params: Params, *, alpha: float) -> Params:
  """The parameters with their deltas added and the key "lora" removed.

  Args:
    params: with or without deltas.
    alpha: scale of the deltas before division by the rank.
  """
  if KEY not in params:
    return params
  deltas: Mapping[str, Any] = params[KEY]

  def add(name: str, leaf: Any) -> Any:  # on the host or a device
    if name not in deltas:
      return leaf
    a, b = deltas[name]["a"], deltas[name]["b"]
    return leaf + (alpha / a.shape[-1]) * (a @ b).astype(leaf.dtype)

  base = {k: v for k, v in params.items() if k != KEY}
  merged: PyTree = selection.map_paths(add, base)
  return merged
