"""Compilation for GPUs without a GPU.

XLA:GPU compiles from a description of the device instead of a device. It needs
JAX's CUDA plugin (extra `cuda`), which contains ptxas, but no driver and no
GPU. Matrix products get a default algorithm, since none can be timed.

Figures are from NVIDIA's data sheets of H100 SXM and H200 SXM and CUDA's device
attributes for compute capability 9.0.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mico_jax import extras

# Share of a device's memory for XLA; CUDA, NCCL and cuDNN use the rest. Set
# XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 for a run.
USABLE = 0.92


@dataclass(frozen=True)
class Gpu:
  """One GPU.

  Attributes:
    product: product name.
    flops: peak dense bfloat16 FLOP/s.
    bandwidth: of its memory, bytes/s.
    memory: bytes.
    nvlink: bandwidth within a host, bytes/s in one direction.
    network: bandwidth between hosts per GPU, bytes/s in one direction.
  """

  product: str
  flops: float
  bandwidth: float
  memory: int
  nvlink: float
  network: float


GPUS: dict[str, Gpu] = {
  "h100": Gpu(
    "NVIDIA H100 80GB HBM3", 989e12, 3.35e12, 84_942_979_072, 450e9, 50e9
  ),
  "h200": Gpu(
    "NVIDIA H200 141GB HBM3e", 989e12, 4.8e12, 151_397_597_184, 450e9, 50e9
  ),
}

# Limits of compute capability 9.0, and the figures that both chips share.
_LIMITS: Mapping[str, int | float] = {
  "threads_per_block_limit": 1024,
  "threads_per_warp": 32,
  "threads_per_core_limit": 2048,
  "thread_dim_limit_x": 1024,
  "thread_dim_limit_y": 1024,
  "thread_dim_limit_z": 64,
  "block_dim_limit_x": 2**31 - 1,
  "block_dim_limit_y": 2**16 - 1,
  "block_dim_limit_z": 2**16 - 1,
  "shared_memory_per_block": 48 * 1024,
  "shared_memory_per_block_optin": 227 * 1024,
  "shared_memory_per_core": 228 * 1024,
  "registers_per_core_limit": 2**16,
  "registers_per_block_limit": 2**16,
  "core_count": 132,
  "fpus_per_core": 128,
  "l2_cache_size": 50 * 2**20,
  "clock_rate_ghz": 1.98,
  "device_address_bits": 64,
}


def description(kind: str) -> str:
  """Target description of a GPU in the text format of XLA's protocol buffer.

  Args:
    kind: key of `GPUS`.
  """
  chip = GPUS[kind]
  fields = [f"  {name}: {value}" for name, value in _LIMITS.items()]
  fields += [
    f"  memory_bandwidth: {int(chip.bandwidth)}",
    f"  device_memory_size: {chip.memory}",
    "  cuda_compute_capability { major: 9 minor: 0 }",
    '  device_vendor: "NVIDIA Corporation"',
    f'  name: "{chip.product}"',
    '  driver_version: "13.0.0"',
    '  runtime_version: "13.0.0"',
    '  compile_time_toolkit_version: "13.0.0"',
    "  device_interconnect_info { active_links: 18 }",
  ]
  body = "\n".join(fields)
  return (
    f"gpu_device_info {{\n{body}\n}}\n"
    'platform_name: "CUDA"\n'
    "dnn_version_info { major: 9 minor: 12 patch: 0 }\n"
    f'device_description_str: "{chip.product}"\n'
  )


def missing() -> str | None:
  """The reason why nothing can be compiled for GPUs here, or None."""
  if importlib.util.find_spec("jax_plugins") is not None:
    for name in ("xla_cuda13", "xla_cuda12"):
      if importlib.util.find_spec(f"jax_plugins.{name}") is not None:
        return None
  return (
    f"JAX's CUDA plugin is not installed: {extras.install('cuda')} (Linux; no "
    "GPU needed)."
  )


def devices(kind: str, shape: Sequence[int]) -> Sequence[Any]:
  """Descriptions of devices, to compile for.

  Args:
    kind: key of `GPUS`.
    shape: number of hosts, GPUs per host.
  """
  from jax.experimental import topologies

  hosts, local = shape
  topology: Any = topologies.get_topology_desc(
    platform="cuda",
    topology_name=kind,
    topology=f"1x{hosts}x{local}",
    target_config=description(kind),
  )
  return topology.devices


# Algorithms of products cannot be timed, so the compiler takes its default. The
# default of Triton does not support every product ("Couldn't find output tile
# sizes"), so cuBLAS is used.
COMPILER_OPTIONS = {
  "xla_gpu_autotune_level": "0",
  "xla_gpu_enable_triton_gemm": False,
}
