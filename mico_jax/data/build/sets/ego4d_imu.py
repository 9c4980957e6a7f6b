"""Ego4D: motion of a camera on the head, and the scenario of the video.

The publisher names scenarios of whole videos and no task on motion alone. Here,
as in ImageBind, recordings are cut into windows of five seconds, and a window
has the scenario of its video; videos of several scenarios, or of none, are
left out. Videos are divided by the hash of their name, four fifths to learn
from, so that no window of a video that is measured was seen.

Times jitter around 200 Hz. Values are interpolated to that rate exactly; where
no reading is near there is a gap, and windows with gaps in more than a tenth of
the channels that the recording has are left out. Readings are taken as m/s2 and
rad/s, as the cameras give them; a video whose acceleration is not about that of
gravity is left out, since its unit is another.

Source: Grauman et al., arXiv:2110.07058; the windows: arXiv:2305.05665,
section 4.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from mico_jax.data.build.sets.base import Copy, OfficialSet
from mico_jax.data.identity import tell

RATE, SECONDS = 200, 5  # Hz, s
TIME = "canonical_timestamp_ms"
# In the order of the record of inertial sensors.
COLUMNS = ("accl_x", "accl_y", "accl_z", "gyro_x", "gyro_y", "gyro_z")
_NEAR = 15.0  # ms, between readings; beyond there is a gap
_GAPS = 0.1  # share of a window
_GRAVITY = (6.0, 14.0)  # m/s2, of the median acceleration


@dataclasses.dataclass(frozen=True)
class Ego4DImu(OfficialSet):
  """Windows of motion with the scenario of their video."""

  title: ClassVar = "Ego4D, scenarios from motion, windows of 5 s"
  source: ClassVar = "https://ego4d-data.org"
  layout: ClassVar = (
    "ego4d.json       videos with video_uid and scenarios",
    f"imu/VIDEO.csv    {TIME}, gyro_x ..., accl_x ...",
  )
  steps: ClassVar = (
    "sign the license, then: ego4d --output_directory DIR --datasets imu "
    "--metadata; the copy is DIR/v2",
  )
  note: ClassVar = (
    "videos of one scenario, cut into windows of 5 s; four fifths of the "
    "videos to learn from, by the hash of their name"
  )

  def lines(self, copy: Copy) -> Iterator[dict[str, Any]]:
    """See `OfficialSet`; facts: `scenarios`, all of those that are read."""
    recorded = {
      name.removesuffix(".csv")
      for name in copy.files("imu")
      if name.endswith(".csv")
    }
    scenarios = self._scenarios(copy)
    videos = sorted(recorded & scenarios.keys())
    if not videos:
      raise copy.wrong(
        f"of {len(recorded)} files in imu/ and {len(scenarios)} videos of one "
        "scenario none belong together."
      )
    other, cut, named = [], 0, set()
    copy.total = len(videos)
    for copy.done, video in enumerate(videos):
      times, values = self._recording(copy, video)
      speed = np.linalg.norm(values[:, :3], axis=1)
      if not _GRAVITY[0] < np.nanmedian(speed) < _GRAVITY[1]:
        other.append(video)
        continue
      windows, lost = windows_of(times, values)
      cut += lost
      if not len(windows):
        continue
      named.add(scenarios[video])
      np.savez(copy.place(f"motion/{video}.npz"), windows=windows)
      for i in range(len(windows)):
        yield {
          "id": f"{video}/{i}",
          "split": split_of(video),
          "imu": f"motion/{video}.npz:windows[{i}]",
          "scenario": scenarios[video],
          "video_uid": video,
        }
    copy.facts = {"scenarios": sorted(named)}
    if other:
      tell(
        f"{len(other)} videos whose acceleration is not about 9.8 m/s2 are "
        f"left out, such as {other[0]}."
      )
    if cut:
      tell(f"{cut} windows with gaps are left out.")

  def _scenarios(self, copy: Copy) -> dict[str, str]:
    """Video -> its scenario, where it has one only."""
    try:
      videos = json.loads(copy.text("ego4d.json"))["videos"]
      found = {v["video_uid"]: v.get("scenarios") or [] for v in videos}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise copy.wrong(f"ego4d.json has no videos: {error!r}.") from error
    return {uid: str(x[0]) for uid, x in found.items() if len(x) == 1}

  def _recording(
    self, copy: Copy, video: str
  ) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, "N 6"]]:
    """Times in ms, increasing, and readings; NaN: missing."""
    import pyarrow as pa
    from pyarrow import csv

    name = f"imu/{video}.csv"
    types = dict.fromkeys((TIME, *COLUMNS), pa.float64())
    try:
      table = csv.read_csv(
        copy.path(name),
        convert_options=csv.ConvertOptions(
          column_types=types, include_columns=list(types)
        ),
      )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
      raise copy.wrong(f"{name} is not readable: {error}.") from error
    columns = [
      table[column].to_numpy(zero_copy_only=False).astype(np.float64)
      for column in types
    ]
    times, order = np.unique(columns[0], return_index=True)
    values = np.stack(columns[1:], axis=1)[order]
    known = np.isfinite(times)
    return times[known], values[known]


def split_of(video: str) -> str:
  """The split of a video, by the hash of its name."""
  number = int(hashlib.sha256(video.encode()).hexdigest()[:8], 16)
  return "train" if number % 5 else "test"


def windows_of(
  times: Float[np.ndarray, " N"], values: Float[np.ndarray, "N C"]
) -> tuple[Float[np.ndarray, "K S C"], int]:
  """Windows of a recording at `RATE`, and how many were left out for gaps.

  Args:
    times: of the readings, increasing, in ms.
    values: NaN: missing.
  """
  step, length = 1000 / RATE, RATE * SECONDS
  if len(times) < 2:
    return np.zeros((0, length, values.shape[1]), np.float32), 0
  count = int((times[-1] - times[0]) // step) + 1
  grid = times[0] + step * np.arange(count // length * length)
  out = np.full((len(grid), values.shape[1]), np.nan, np.float32)
  for i, column in enumerate(values.T):
    there = np.isfinite(column)
    if there.sum() < 2:
      continue
    moments = times[there]
    after = np.clip(np.searchsorted(moments, grid), 1, len(moments) - 1)
    near = moments[after] - moments[after - 1] <= _NEAR
    near &= (grid >= moments[0]) & (grid <= moments[-1])
    out[:, i] = np.where(near, np.interp(grid, moments, column[there]), np.nan)
  windows = out.reshape(-1, length, values.shape[1])
  measured = np.isfinite(values).any(axis=0)
  whole = np.isnan(windows[..., measured]).mean(axis=(1, 2)) <= _GAPS
  return windows[whole], int((~whole).sum())
