"""XLA compiler options that differ from the defaults, by machine."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from mico_jax.kernels import target

Options = dict[str, bool | str]

# XLA's own matrix products instead of YNNPACK's, the default of jaxlib since
# 0.10: ViT-B at batch 8 on two threads takes 1.2 instead of 1.5 s, at batch 1
# 4% more (docs/results.md). Without the tree reduction forward passes are
# faster, but sums over rows in a backward pass are several times slower.
_CPU_FORWARD: Options = {
  "xla_cpu_experimental_ynn_fusion_type": "",
  "xla_disable_hlo_passes": "tree_reduction_rewriter",
}
# Gathers parameters while matrix products run. This is the default on v5e; v5p
# and v6e wait for each gather. It hides half of the communication of ViT-g's
# step (docs/results.md). Reduce-scatters of gradients are left alone: fused
# with products they are slower.
_GATHER_BESIDE: Options = {
  "xla_enable_async_all_gather": True,
  "xla_tpu_enable_async_collective_fusion": True,
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
  "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
  "xla_tpu_overlap_compute_collective_tc": True,
}
_TPU_STEP = {"v5p": _GATHER_BESIDE, "v6e": _GATHER_BESIDE}


@functools.cache
def forward_options() -> Options | None:
  """`compiler_options` of `jax.jit` for programs without a backward pass.

  Returns:
    None where the compiler's defaults are best: on other platforms than the
    CPU, and with a jaxlib that does not know the options.
  """
  if jax.default_backend() != "cpu":
    return None
  return _CPU_FORWARD if _knows(_CPU_FORWARD) else None


def step_options(sharding: Sharding | None = None) -> Options | None:
  """`compiler_options` of a training step for the current target.

  Args:
    sharding: on an absent device to compile for; None: the step is compiled
      for the devices of this process.

  Returns:
    None where the compiler's defaults are best or it does not know the options.
  """
  options = _TPU_STEP.get(target.current().generation)
  if options is None or not _knows(options, sharding):
    return None
  return options


def _knows(
  options: Mapping[str, bool | str], sharding: Sharding | None = None
) -> bool:
  """Whether the compiler accepts the options."""
  x = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding)
  platforms = None if sharding is None else ("tpu",)
  lowered = (
    jax.jit(lambda x: x + 1).trace(x).lower(lowering_platforms=platforms)
  )
  try:
    lowered.compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError:
    return False
  return True
