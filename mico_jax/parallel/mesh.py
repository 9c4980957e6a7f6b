"""The device mesh of a run: always the four axes of `axes.MESH_AXES`.

Axes that the config does not name have one device, so every preset of rules
fits every mesh. Slices (parts of a machine joined by the slow data-center
network) are the outer part of the axes of `parallel.slices`: only collectives
over those axes leave a slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from mico_jax import axes
from mico_jax.config import ConfigError, ParallelConfig
from mico_jax.parallel.backend import require_backend

# Number of shards of each parameter on a TPU slice. Widths of 768, 1024 and
# 1408 divided by it are whole tiles of 8 rows; the compiler gathers other
# shards by sums over zero-padded arrays, which move twice as many bytes. On
# v5e:16x16 sixteen neighbours form a ring, with twice the bandwidth of eight
# (docs/results.md). A shard of ViT-g with Adam's moments is 0.8 GiB.
PIECES = 16


def mesh_sizes(config: ParallelConfig, num_devices: int) -> dict[str, int]:
  """Number of devices along each mesh axis.

  Args:
    config: axis -> number of devices; -1 (at most once): all remaining ones.
    num_devices: of the mesh.

  Raises:
    ConfigError: for an unknown axis, or sizes that do not multiply to the
      number of devices.
  """
  requested = dict(config.mesh)
  for field, names in (("mesh", requested), ("slices", config.slices)):
    if unknown := sorted(set(names) - set(axes.MESH_AXES)):
      raise ConfigError(
        f"parallel.{field} names {unknown[0]!r}, which is no mesh axis; known: "
        f"{', '.join(axes.MESH_AXES)}."
      )
  free = [name for name, size in requested.items() if size == -1]
  fixed = math.prod(size for size in requested.values() if size != -1)
  if len(free) > 1 or any(s < 1 and s != -1 for s in requested.values()):
    raise ConfigError(
      f"parallel.mesh={requested}: sizes must be positive, with at most one -1 "
      "(all remaining devices)."
    )
  if free:
    requested[free[0]] = max(num_devices // fixed, 1)
  sizes = {name: requested.get(name, 1) for name in axes.MESH_AXES}
  if math.prod(sizes.values()) != num_devices:
    raise ConfigError(
      f"parallel.mesh={dict(config.mesh)} asks for "
      f"{math.prod(sizes.values())} devices, but there are {num_devices}; "
      "change parallel.mesh."
    )
  return sizes


def _slices(devices: Sequence[Any], count: int) -> list[list[Any]]:
  """The devices of each slice.

  They are grouped by `slice_index` where the platform has it (TPU), else by
  process, else (one process on a CPU, for tests) in equal runs.
  """
  for attribute in ("slice_index", "process_index"):
    groups: dict[int, list[jax.Device]] = {}
    for device in devices:
      groups.setdefault(getattr(device, attribute, 0), []).append(device)
    if len(groups) == count and len({len(x) for x in groups.values()}) == 1:
      return [groups[index] for index in sorted(groups)]
    if len(groups) > 1 and len(groups) % count:
      raise ConfigError(
        f"parallel.slices asks for {count} slices, but the devices form "
        f"{len(groups)}; change parallel.slices."
      )
  size = len(devices) // count
  return [list(devices[i * size : (i + 1) * size]) for i in range(count)]


def _block(shape: Sequence[int], devices: Sequence[Any]) -> Any:
  """The devices of one slice as a mesh, neighbours along the last axes."""
  try:
    return mesh_utils.create_device_mesh(shape, devices)
  except (NotImplementedError, ValueError, AssertionError):
    # No group of physical axes has the size of some mesh axis.
    return mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )


def make_mesh(
  config: ParallelConfig, devices: Sequence[Any] | None = None
) -> Mesh:
  """Builds the mesh that the config describes.

  Args:
    config: sizes of the axes, including slices.
    devices: to use; None: all devices of the run.

  Raises:
    ConfigError: for sizes or slices that do not fit the devices.
  """
  if devices is None:
    require_backend()
    devices = jax.devices()
  devices = list(devices)
  sizes = mesh_sizes(config, len(devices))
  outer = [config.slices.get(name, 1) for name in axes.MESH_AXES]
  for name, count in config.slices.items():
    if count < 1 or sizes[name] % count:
      raise ConfigError(
        f"parallel.slices={dict(config.slices)}: {count} must divide the "
        f"{sizes[name]} devices of the mesh axis {name!r}."
      )
  inner = [
    size // part for size, part in zip(sizes.values(), outer, strict=True)
  ]
  blocks = [
    np.asarray(_block(inner, part), dtype=object)
    for part in _slices(devices, math.prod(outer))
  ]
  # [outer axes, inner axes] -> each outer axis in front of its inner one.
  grid = np.stack(blocks).reshape(*outer, *inner)
  count = len(axes.MESH_AXES)
  order = [i for pair in zip(range(count), range(count, 2 * count), strict=True)
           for i in pair]  # fmt: skip
  grid = grid.transpose(order).reshape(tuple(sizes.values()))
  return Mesh(grid, axes.MESH_AXES)
