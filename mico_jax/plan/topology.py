"""TPU slices and hosts of GPUs for which plans are made.

TPU slices are named by their shape in chips ("v5e:16x16"), not by the number of
cores; GPUs by hosts and GPUs per host ("h100:8", "h200:4x8"). Figures are from
the vendors' data sheets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mico_jax import aot
from mico_jax.config import ConfigError
from mico_jax.kernels.target import Target
from mico_jax.plan import gpu

GIB = 2**30


@dataclass(frozen=True)
class Torus:
  """The network of the chips of a TPU generation.

  Attributes:
    link: bandwidth of one link in one direction, bytes/s.
    wrap: a dimension has wrap-around links if its size is a multiple of this.
    limit: largest size of a dimension.
    shapes: slices on offer; others that follow the same rules compile as well.
  """

  link: float
  wrap: int
  limit: int
  shapes: tuple[str, ...]

  @property
  def dims(self) -> int:
    """Number of dimensions of the torus."""
    return self.shapes[0].count("x") + 1


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
_CUBE += ("8x8x8", "8x8x16")

TORI: dict[str, Torus] = {
  "v4": Torus(50e9, 4, 16, _CUBE),
  "v5e": Torus(50e9, 16, 16, _FLAT),
  "v5p": Torus(100e9, 4, 24, _CUBE),
  "v6e": Torus(100e9, 16, 16, _FLAT),
  "tpu7x": Torus(100e9, 4, 24, _CUBE),
}
_GPU_SHAPES = ("1", "2", "4", "8", "2x8", "4x8", "8x8")


@dataclass(frozen=True)
class Topology:
  """Devices of one kind and their network.

  Attributes:
    name: such as "v5e:16x16" or "h100:8".
    kind: key of `aot.CHIPS` or `gpu.GPUS`.
    shape: chips along each dimension; for GPUs: hosts, GPUs per host.
  """

  name: str
  kind: str
  shape: tuple[int, ...]

  @property
  def is_gpu(self) -> bool:
    """Whether the devices are GPUs."""
    return self.kind in gpu.GPUS

  @property
  def platform(self) -> str:
    """Platform for which JAX lowers."""
    return "cuda" if self.is_gpu else "tpu"

  @property
  def num_chips(self) -> int:
    """Number of chips or GPUs."""
    return math.prod(self.shape)

  @property
  def _per_chip(self) -> int:
    """Number of JAX devices per chip."""
    return 1 if self.is_gpu else aot.CHIPS[self.kind].devices

  @property
  def cores(self) -> int:
    """TensorCores per device, over which a kernel's grid is split."""
    return 1 if self.is_gpu else aot.CHIPS[self.kind].cores

  @property
  def num_devices(self) -> int:
    """Number of JAX devices."""
    return self.num_chips * self._per_chip

  @property
  def peak(self) -> float:
    """Peak bfloat16 FLOP/s of a device."""
    if self.is_gpu:
      return gpu.GPUS[self.kind].flops
    return aot.CHIPS[self.kind].flops / self._per_chip

  @property
  def clock(self) -> float | None:
    """Clock in Hz; None for GPUs and where it is unpublished."""
    return None if self.is_gpu else aot.CHIPS[self.kind].clock

  @property
  def hbm(self) -> float:
    """Bandwidth of a device's memory in bytes/s."""
    if self.is_gpu:
      return gpu.GPUS[self.kind].bandwidth
    return aot.CHIPS[self.kind].bandwidth / self._per_chip

  @property
  def memory(self) -> int:
    """Memory of a device in bytes; `usable` is less."""
    if self.is_gpu:
      return gpu.GPUS[self.kind].memory
    return int(aot.CHIPS[self.kind].memory / self._per_chip * GIB)

  @property
  def usable(self) -> int:
    """Bytes that a program may use on a device."""
    if self.is_gpu:
      return int(self.memory * gpu.USABLE)
    # The compiler reserves 1/64, as its out-of-memory errors state.
    return self.memory - self.memory // 64

  @property
  def target(self) -> Target:
    """Target for which kernels are traced."""
    if self.is_gpu:
      return Target("gpu", devices=self.num_devices)
    return Target("tpu", self.kind, devices=self.num_devices)

  def devices(self) -> Sequence[Any]:
    """Descriptions of the devices, to compile for.

    Raises:
      ConfigError: if the compiler is missing or does not know the shape.
    """
    if reason := self.missing():
      raise ConfigError(reason)
    from jax.errors import JaxRuntimeError

    try:
      if self.is_gpu:
        return gpu.devices(self.kind, self.shape)
      return aot.devices(self.name)
    except JaxRuntimeError as error:
      raise ConfigError(
        f"the compiler refuses topology {self.name!r}: {error}; {known()}"
      ) from error

  def missing(self) -> str | None:
    """The reason why nothing can be compiled for it here, or None."""
    if self.is_gpu:
      return gpu.missing()
    return aot.missing()

  def places(self, devices: Sequence[Any]) -> list[tuple[int, ...]]:
    """Coordinates of devices; for GPUs: host, index on the host."""
    if not self.is_gpu:
      return [tuple(d.coords) for d in devices]
    return [divmod(d.id, self.shape[1]) for d in devices]

  def bandwidth(self, places: Sequence[Sequence[int]]) -> float:
    """Bytes/s that each device of a group can receive from the others.

    Every dimension of a torus along which the devices differ contributes its
    links: two if they span a dimension with wrap-around links, else one, which
    is all that the end of a line has.

    Args:
      places: coordinates of the devices of the group.
    """
    if self.is_gpu:
      hosts = {place[0] for place in places}
      chip = gpu.GPUS[self.kind]
      return chip.network if len(hosts) > 1 else chip.nvlink
    torus, links = TORI[self.kind], 0
    for axis, size in enumerate(self.shape):
      covered = len({place[axis] for place in places})
      if covered > 1:
        closes = covered == size and size % torus.wrap == 0
        links += 2 if closes else 1
    # A device of a chip with two shares its links.
    return max(links, 1) * torus.link / self._per_chip


def known() -> str:
  """One sentence that lists the known topologies."""
  parts = [f"{kind}:{{{','.join(t.shapes)}}}" for kind, t in TORI.items()]
  parts += [f"{kind}:{{{','.join(_GPU_SHAPES)}}}" for kind in gpu.GPUS]
  return f"known: {' '.join(parts)}."


def parse(name: str) -> Topology:
  """The topology of a name.

  Raises:
    ConfigError: for an unknown topology, listing the known ones.
  """
  kind, _, shape = name.partition(":")
  unknown = ConfigError(f"unknown topology {name!r}; {known()}")
  if not re.fullmatch(r"\d+(x\d+)*", shape):
    raise unknown
  sizes = tuple(int(x) for x in shape.split("x"))
  if kind in gpu.GPUS:
    sizes = (1, *sizes) if len(sizes) == 1 else sizes
    if len(sizes) != 2 or not 1 <= sizes[1] <= 8 or sizes[0] < 1:
      raise unknown
    return Topology(name, kind, sizes)
  if kind not in TORI:
    raise unknown
  torus = TORI[kind]
  smallest = (2, 2, 1)[: torus.dims]
  if len(sizes) != torus.dims or any(
    size < least or size > torus.limit or (size > 1 and size % 2)
    for size, least in zip(sizes, smallest, strict=True)
  ):
    raise unknown
  return Topology(name, kind, sizes)
