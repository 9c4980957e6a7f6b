"""Point clouds: groups of neighbours around points that lie far apart.

A decoded cloud is float32 [N, 8]: coordinates, colour in -1..1, whether there
is a colour, and 1. What is sent is [T, groups, size, 8]; the last column is 0
in padding. A token is a group: the nearest points of a centre, nearest first,
of which the first is the centre.

Rules, since a cloud has no order and no scale of its own:

- Points of equal coordinates are one; the others are sorted, so that the order
  of a file does not count. More than `MOST` points are thinned before, evenly.
- Coordinates are moved to the mean of the points and divided by the largest
  distance from it: the unit sphere. Sizes in metres are lost; axes are kept.
- Centres are chosen by farthest-point sampling; the first is the point farthest
  from the mean. T frames hold the centres in turn: more frames, more groups.
- A cloud of fewer points than groups has fewer tokens, and one of fewer than
  `size` smaller groups: the rest is padding.

Sampling and grouping are done on the host. They have steps that wait for one
another, need the cloud at its own size, and break ties between equal distances
in one way only; the tokens of JAX and PyTorch are then of the same groups.

Source: farthest points and groups, PointNet++, arXiv:1706.02413, section 3.2.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mico_jax.modalities.base import (
  ArraySpec,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Mode,
)
from mico_jax.modalities.points_file import read_points
from mico_jax.modalities.spatial import modes

COLUMNS = 8  # x y z, red green blue, coloured, there
MOST = 2**15  # points that are sampled
_SCALE, _NOISE = 0.1, 0.005  # of `jitter`: of the size, of the sphere's radius


def valid_groups(frames: Any, *, xp: Any) -> Any:
  """Groups that have a point, bool [B, groups]."""
  del xp
  return frames[:, :, 0, COLUMNS - 1] > 0.5


@dataclasses.dataclass(frozen=True)
class Points:
  """What a record says of its clouds.

  Attributes:
    key: of the modality, for messages.
    groups: of a frame.
    size: points of a group.
  """

  key: str
  groups: int = 64
  size: int = 32

  @property
  def spec(self) -> ArraySpec:
    """The array that is sent."""
    unit = "of the largest distance from the mean"
    return ArraySpec(("T", "G", "K", "C"), "float32", unit, (-2.0, 2.0))

  @property
  def embedding(self) -> CustomEmbedding:
    """Tokens of groups, see `mico_jax.layers.point_embed`."""
    return CustomEmbedding(
      "mico_jax.layers.point_embed:PointEmbed",
      frame=(self.groups, self.size, COLUMNS),
      tokens=self.groups,
      torch="mico_jax.interop.torch_template.point_embed:PointEmbed",
      valid=valid_groups,
    )

  def decode(self, raw: Any, geometry: Geometry) -> Float[np.ndarray, "N 8"]:
    """A cloud in the unit sphere.

    Args:
      raw: content of a file, or an array [N, 3] or [N, 6] with colours.
      geometry: not used.

    Raises:
      DecodeError: for what cannot be read, is no cloud, or has no extent.
    """
    del geometry
    cloud = read_points(raw)
    xyz = np.asarray(cloud.xyz, np.float64)
    if not np.isfinite(xyz).all():
      wrong = int((~np.isfinite(xyz).all(axis=1)).sum())
      raise DecodeError(
        f"{wrong} of {len(xyz)} points have coordinates that are not finite; "
        "remove them."
      )
    kept = np.arange(len(xyz))
    if len(xyz) > MOST:
      kept = np.linspace(0, len(xyz) - 1, MOST).astype(int)
    rows = np.zeros((len(kept), COLUMNS))
    rows[:, :3], rows[:, -1] = xyz[kept], 1
    if cloud.colour is not None:
      rows[:, 3:6], rows[:, 6] = 2 * cloud.colour[kept] - 1, 1
    rows = _distinct(rows)
    rows[:, :3] -= rows[:, :3].mean(axis=0)
    radius = np.sqrt(np.square(rows[:, :3]).sum(axis=1).max())
    if len(rows) < 2 or not 0 < radius < np.inf:
      raise DecodeError(
        f"the {len(xyz)} points of this {self.key} lie at one place or have no "
        "finite extent; expected two different ones at least."
      )
    rows[:, :3] /= radius
    return rows.astype(np.float32)

  def example(self, geometry: Geometry, seed: int) -> Float[np.ndarray, "N 3"]:
    """An ellipsoid, with fewer points than all frames have groups."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((geometry.frames * self.groups - seed % 9, 3))
    x *= np.array([1.0, 0.7, 0.4]) / np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32)

  def modes(self) -> dict[str, Mode]:
    """The modes that every cloud has."""
    grow = f"plain after a change of size by up to {_SCALE:.0%}, and noise"
    return modes(
      self._mode("plain", "groups of the unit sphere", turns=False),
      self._mode("jitter", grow, turns=False, eval_mode="plain"),
      self._mode(
        *("turn_z", f"{grow}, and a turn around z, the axis upwards"),
        turns=True,
        eval_mode="plain",
      ),
    )

  def _mode(
    self, name: str, about: str, *, turns: bool, eval_mode: str = ""
  ) -> Mode:
    def host(
      cloud: Float[np.ndarray, "N C"],
      geometry: Geometry,
      rng: np.random.Generator | None = None,
    ) -> Float[np.ndarray, "T G K 8"]:
      if cloud.shape[1] != COLUMNS:  # an example
        cloud = self.decode(cloud, geometry)
      if eval_mode and rng is not None:
        cloud = _moved(cloud, rng, turns=turns)
      return self._frames(cloud, geometry.frames)

    def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
      del geometry
      return array.astype(xp.float32)

    return Mode(name, host, to_pixels, eval_mode, about)

  def _frames(
    self, cloud: Float[np.ndarray, "N 8"], count: int
  ) -> Float[np.ndarray, "T G K 8"]:
    """Groups around far points, dealt out to the frames in turn."""
    xyz = cloud[:, :3].astype(np.float64)
    centres = farthest_points(xyz, min(count * self.groups, len(xyz)))
    near = neighbours(xyz, centres, min(self.size, len(xyz)))
    shape = (count * self.groups, self.size, COLUMNS)
    groups = np.zeros(shape, np.float32)
    groups[: len(near), : near.shape[1]] = cloud[near]
    dealt = groups.reshape(self.groups, count, self.size, COLUMNS)
    return np.ascontiguousarray(dealt.swapaxes(0, 1))

  def draw(self, frame: Float[np.ndarray, "G K 8"]) -> np.ndarray:
    """A picture [64, 64] of the points, seen along y, z upwards."""
    there = frame[frame[..., -1] > 0]
    picture = np.zeros((64, 64), np.float32)
    across, up = (np.clip(32 * there[:, i] + 32, 0, 63) for i in (0, 2))
    shade = 1.5 - 0.5 * np.clip(there[:, 1], -1, 1)  # the near ones brighter
    np.maximum.at(picture, (63 - up.astype(int), across.astype(int)), shade)
    return picture


def _distinct(rows: Float[np.ndarray, "N 8"]) -> Float[np.ndarray, "M 8"]:
  """Sorted rows of different coordinates, of equal ones the first."""
  rows = rows[np.lexsort(rows.T[::-1])]
  new = (rows[1:, :3] != rows[:-1, :3]).any(axis=1)
  return rows[np.concatenate([[True], new])]


def _moved(
  cloud: Float[np.ndarray, "N 8"], rng: np.random.Generator, *, turns: bool
) -> Float[np.ndarray, "N 8"]:
  """A cloud of another size, with noise, turned around z."""
  cloud = cloud.copy()
  xyz = cloud[:, :3] * rng.uniform(1 - _SCALE, 1 + _SCALE)
  xyz = xyz + np.clip(rng.normal(0, _NOISE, xyz.shape), -0.05, 0.05)
  angle = rng.uniform(0, 2 * np.pi) if turns else 0.0
  cos, sin = np.cos(angle), np.sin(angle)
  cloud[:, :3] = xyz @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
  return cloud


def farthest_points(
  xyz: Float[np.ndarray, "N 3"], count: int
) -> Int[np.ndarray, " M"]:
  """Indices of `count` points, each the farthest from those before it.

  The first is the point farthest from the mean; of equal ones the first counts.

  Args:
    xyz: different points.
    count: at most N.

  Source: PointNet++, arXiv:1706.02413, section 3.2, which leaves the start
    open.
  """
  chosen = np.zeros(count, np.int64)
  at = int(np.square(xyz - xyz.mean(axis=0)).sum(axis=1).argmax())
  nearest = np.full(len(xyz), np.inf)
  for i in range(count):
    chosen[i] = at
    np.minimum(nearest, np.square(xyz - xyz[at]).sum(axis=1), out=nearest)
    at = int(nearest.argmax())
  return chosen


def neighbours(
  xyz: Float[np.ndarray, "N 3"], centres: Int[np.ndarray, " M"], count: int
) -> Int[np.ndarray, "M K"]:
  """Indices of the `count` points next to each centre, nearest first.

  Of equal distances the point of lower index counts.

  Args:
    xyz: different points.
    centres: indices of some.
    count: at most N.
  """
  out = np.empty((len(centres), count), np.int64)
  for i, centre in enumerate(centres):
    distance = np.square(xyz - xyz[centre]).sum(axis=1)
    last = np.partition(distance, count - 1)[count - 1]
    some = np.flatnonzero(distance <= last)
    out[i] = some[np.argsort(distance[some], kind="stable")[:count]]
  return out
