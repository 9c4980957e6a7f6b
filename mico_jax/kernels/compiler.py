"""Options of XLA that are not its defaults, by machine and kind of program."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from mico_jax.kernels import target

Options = dict[str, bool | str]

# XLA's own products in place of YNNPACK's, which jaxlib takes by default since
# 0.10: ViT-B at batch 8 on two threads takes 1.2 in place of 1.5 s, at batch 1
# 4% more (docs/results.md). Row sums in one piece: faster forwards, but sums
# over rows in a backward pass become several times slower.
_CPU_FORWARD: Options = {
  "xla_cpu_experimental_ynn_fusion_type": "",
  "xla_disable_hlo_passes": "tree_reduction_rewriter",
}
# Parameters are gathered while products run. v5e does so by itself, v5p and v6e
# wait for each gather: half of the communication of ViT-g's step is hidden by
# this (docs/results.md). Not for scatters of gradients: those fusions are
# slower.
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
  """`compiler_options` of a training step for the machine in use.

  Args:
    sharding: on a device to compile for that is not there; None: the step is
      compiled for the devices of this process.

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
  """Whether the compiler takes the options."""
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
