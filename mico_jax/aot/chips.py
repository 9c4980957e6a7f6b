"""TPU generations: figures per chip from the vendor's data sheets."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One TPU generation.

  Attributes:
    flops: peak bfloat16 FLOP/s.
    clock: Hz; None: unpublished.
    bandwidth: of HBM, bytes/s.
    memory: HBM in GiB.
    devices: JAX devices per chip.
    topology: smallest slice that can be compiled for.
    cores: TensorCores per device. Two cores share the "parallel" axes of a
      kernel's grid; XLA's estimates cover both.
  """

  flops: float
  clock: float | None
  bandwidth: float
  memory: float
  devices: int
  topology: str
  cores: int = 1


CHIPS: dict[str, Chip] = {
  "v4": Chip(275e12, 1.05e9, 1228e9, 32, 2, "v4:2x2x1"),
  "v5e": Chip(197e12, 1.5e9, 819e9, 16, 1, "v5e:2x2"),
  "v5p": Chip(459e12, 1.75e9, 2765e9, 95, 1, "v5p:2x2x1", 2),
  "v6e": Chip(918e12, 1.75e9, 1640e9, 32, 1, "v6e:2x2"),
  "tpu7x": Chip(2307e12, None, 7380e9, 192, 2, "tpu7x:2x2x1"),
}


def chip(topology: str) -> Chip:
  """The chip of a topology such as "v5e:2x2".

  Raises:
    ValueError: for an unknown generation, listing the known ones.
  """
  name = topology.split(":")[0]
  if name not in CHIPS:
    raise ValueError(
      f"topology {topology!r}: unknown generation {name!r}; known: "
      f"{', '.join(CHIPS)}."
    )
  return CHIPS[name]
