"""Clips: parts of a useful length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Annotated, ClassVar

from mico_jax.config import ConfigError
from mico_jax.config.fields import Range
from mico_jax.data.build.rows import Row
from mico_jax.data.build.stages.base import Stage, span_of
from mico_jax.modalities import DecodeError


@dataclasses.dataclass(frozen=True)
class ClipsOptions:
  """Lengths of clips."""

  # a shorter part is a failed row, which the status table names
  min_seconds: Annotated[float, Range(0.0, 3600.0, "seconds")] = 5.0
  # a longer part is cut into the fewest equal ones that are not longer
  max_seconds: Annotated[float, Range(0.01, 3600.0, "seconds")] = 30.0


class Clips(Stage):
  """Cuts files, spans or shots to clips of min_seconds to max_seconds.

  Pictures and sound are cut at the same times: see `mico_jax.data.build.raw`.
  """

  name: ClassVar[str] = "clips"
  Options: ClassVar[type] = ClipsOptions
  cuts: ClassVar[bool] = True

  def check(self) -> None:
    """See `Stage`."""
    low, high = self.options.min_seconds, self.options.max_seconds
    if 2 * low > high:
      raise ConfigError(
        f"clips.min_seconds={low:g} must be at most half of clips.max_seconds="
        f"{high:g}: a part just above the latter gives two clips."
      )

  def one(self, row: Row) -> Iterable[Row]:
    """See `Stage`."""
    start, end = span_of(row)
    seconds = end - start
    if not self.options.min_seconds - 1e-6 <= seconds < math.inf:
      length = "a picture alone" if math.isinf(seconds) else f"{seconds:.2f} s"
      raise DecodeError(
        f"{length}, shorter than clips.min_seconds="
        f"{self.options.min_seconds:g}."
      )
    count = math.ceil(seconds / self.options.max_seconds - 1e-6)
    if count <= 1:
      return [row.part(row.id, (start, end))]
    edges = [start + i * seconds / count for i in range(count)] + [end]
    return [
      row.part(f"{row.id}-{i:03d}", (edges[i], edges[i + 1]))
      for i in range(count)
    ]
