"""The device mesh of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from mico_jax.config import ConfigError, ParallelConfig


def make_mesh(
  config: ParallelConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Builds the mesh that the config describes.

  Args:
    config: axis name -> number of devices; -1 (once) takes what is left.
    devices: the devices to use; None: all of the run.

  Raises:
    ConfigError: if the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  names, sizes = tuple(config.mesh), list(config.mesh.values())
  free = [i for i, size in enumerate(sizes) if size == -1]
  fixed = math.prod(size for size in sizes if size != -1)
  if len(free) > 1 or any(s < 1 and s != -1 for s in sizes) or not names:
    raise ConfigError(
      f"parallel.mesh={dict(config.mesh)}: sizes must be positive, with at "
      "most one -1 (all remaining devices)."
    )
  if free:
    sizes[free[0]] = max(len(devices) // fixed, 1)
  if math.prod(sizes) != len(devices):
    raise ConfigError(
      f"parallel.mesh={dict(config.mesh)} asks for {math.prod(sizes)} devices,"
      f" but there are {len(devices)}; change parallel.mesh."
    )
  return Mesh(np.asarray(devices, dtype=object).reshape(sizes), names)
