"""Indian Pines: a scene of 145 x 145 pixels, 200 bands and 16 kinds of ground.

The publisher gives no split. Here a share of the pixels of each kind is drawn
for training, by a seed, and all others are measured, as in most work; where
kinds border on each other, the surroundings of a pixel that is measured hold
pixels of training, which flatters every method that looks at surroundings.

The file says no wavelengths. Of the 220 bands of the recording, `corrected`
lacks those of water, 104 to 108, 150 to 163 and 220. Their centres are taken
as evenly spaced from 400 to 2500 nm, which is the range of the sensor and about
10 nm a band; they are no calibration.

Source: Baumgardner et al., Purdue University, doi:10.4231/R7RX991C.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Shaped

from mico_jax.config.fields import Range
from mico_jax.data.build.sets.base import Copy, OfficialSet

CUBE, TRUTH = "Indian_pines_corrected.mat", "Indian_pines_gt.mat"
WATER = (*range(104, 109), *range(150, 164), 220)
WAVELENGTHS = tuple(
  round(400 + 2100 * band / 219, 1)
  for band in range(220)
  if band + 1 not in WATER
)
# As the publisher numbers them, from 1; 0 is not labelled.
CLASSES = (
  *("Alfalfa", "Corn-notill", "Corn-mintill", "Corn", "Grass-pasture"),
  *("Grass-trees", "Grass-pasture-mowed", "Hay-windrowed", "Oats"),
  *("Soybean-notill", "Soybean-mintill", "Soybean-clean", "Wheat", "Woods"),
  *("Buildings-Grass-Trees-Drives", "Stone-Steel-Towers"),
)


@dataclasses.dataclass(frozen=True)
class IndianPines(OfficialSet):
  """Pixels of a scene; a `share` of each kind is drawn to learn from."""

  share: Annotated[float, Range(0.001, 0.9)] = 0.1
  seed: Annotated[int, Range(0, 2**31 - 1)] = 0

  title: ClassVar = "Indian Pines, 10,249 labelled pixels"
  source: ClassVar = (
    "https://www.ehu.eus/ccwintco/index.php/Hyperspectral_Remote_Sensing_Scenes"
  )
  layout: ClassVar = (
    f"{CUBE}   indian_pines_corrected [145, 145, 200]",
    f"{TRUTH}          indian_pines_gt [145, 145], 0 to 16",
  )
  steps: ClassVar = ("download both files from the page of the source",)
  note: ClassVar = (
    "10% of each kind of ground to learn from, drawn by seed 0 (--set "
    "indian_pines.share, indian_pines.seed); wavelengths evenly spaced, as the "
    "file has none"
  )

  def lines(self, copy: Copy) -> Iterator[dict[str, Any]]:
    """See `OfficialSet`; at least one pixel of a kind is of either split."""
    truth = self._array(copy, TRUTH, "indian_pines_gt", 2)
    cube = self._array(copy, CUBE, "indian_pines_corrected", 3)
    if cube.shape != (*truth.shape, len(WAVELENGTHS)):
      raise copy.wrong(
        f"a scene of shape {list(cube.shape)} and labels of "
        f"{list(truth.shape)}."
      )
    if truth.min() < 0 or truth.max() > len(CLASSES):
      raise copy.wrong(f"labels from {truth.min()} to {truth.max()}.")
    learn = self._drawn(truth)
    copy.total = int((truth > 0).sum())
    scene = copy.reference(CUBE)
    for row, column in np.argwhere(truth > 0).tolist():
      yield {
        "id": f"{row},{column}",
        "split": "train" if learn[row, column] else "test",
        "hyperspectral": f"{scene}:indian_pines_corrected@{row},{column}",
        "class_name": CLASSES[truth[row, column] - 1],
      }

  def _drawn(
    self, truth: Shaped[np.ndarray, "Y X"]
  ) -> Shaped[np.ndarray, "Y X"]:
    """True for the pixels of training."""
    out = np.zeros(truth.size, bool)
    for number in range(1, len(CLASSES) + 1):
      of = np.flatnonzero(truth == number)
      if len(of) < 2:
        continue  # nothing is left to measure
      count = min(max(1, math.ceil(self.share * len(of))), len(of) - 1)
      rng = np.random.default_rng([self.seed, number])
      out[rng.choice(of, count, replace=False)] = True
    return out.reshape(truth.shape)

  def _array(
    self, copy: Copy, file: str, name: str, axes: int
  ) -> Shaped[np.ndarray, "..."]:
    """An array of whole numbers out of a file of MATLAB."""
    from scipy import io

    try:
      found = io.loadmat(copy.index(file), variable_names=[name]).get(name)
    except (ValueError, NotImplementedError, OSError, TypeError) as error:
      raise copy.wrong(f"{file} is not readable: {error}.") from error
    if not isinstance(found, np.ndarray) or found.ndim != axes:
      raise copy.wrong(f"{file} has no array {name} of {axes} axes.")
    if found.dtype.kind not in "iu":
      raise copy.wrong(f"{file}: {name} holds {found.dtype}.")
    return found.astype(np.int64) if axes == 2 else found
