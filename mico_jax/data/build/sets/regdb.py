"""RegDB: people seen by a visible and a thermal camera.

Of 412 people there are ten pictures by either camera. Ten files of `idx/`
divide them into halves for training and testing, ten times; one trial is read,
and published figures are means over the ten.

Source: Nguyen et al., Sensors 17(3):605, 2017; the trials: Ye et al., AAAI
2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from mico_jax.config.fields import Range
from mico_jax.data.build.sets.base import Copy, OfficialSet

_CAMERAS = {"image": "visible", "thermal": "thermal"}


@dataclasses.dataclass(frozen=True)
class RegDB(OfficialSet):
  """People by a visible and a thermal camera; `trial` is one of ten halves."""

  trial: Annotated[int, Range(1, 10)] = 1

  title: ClassVar = "RegDB, visible to thermal"
  source: ClassVar = "http://dm.dongguk.edu/link.html"
  layout: ClassVar = (
    "Visible/PERSON/*.bmp, Thermal/PERSON/*.bmp",
    "idx/train_visible_1.txt    a path and a number a line; 1 to 10",
    "idx/train_thermal_1.txt, idx/test_visible_1.txt, idx/test_thermal_1.txt",
  )
  steps: ClassVar = ("ask the publisher for Dongguk Body-based Person "
                     "Recognition Database (DBPerson-Recog-DB1)",)  # fmt: skip
  counts: ClassVar = {"train": 4120, "test": 4120}
  note: ClassVar = (
    "trial 1 of ten (--set regdb.trial=N); published figures are their mean"
  )

  def lines(self, copy: Copy) -> Iterator[dict[str, Any]]:
    """See `OfficialSet`; identities of training and testing differ."""
    rows = [
      (split, key, *row)
      for split in ("train", "test")
      for key, camera in _CAMERAS.items()
      for row in self._rows(copy, f"idx/{split}_{camera}_{self.trial}.txt")
    ]
    copy.total = len(rows)
    for split, key, path, number in rows:
      copy.path(path)
      yield {
        "id": path,
        "split": split,
        key: copy.reference(path),
        # Both halves count from 0.
        "identity": f"{split}/{number}",
        "camera": _CAMERAS[key],
      }

  def _rows(self, copy: Copy, name: str) -> list[tuple[str, str]]:
    """Path and number of the person of each picture that a file lists."""
    found = []
    for line in copy.text(name).splitlines():
      path, _, number = line.strip().rpartition(" ")
      if not line.strip():
        continue
      if not path or not number.isdigit():
        raise copy.wrong(f"{name} has a line {line[:80]!r}.")
      found.append((path.strip(), number))
    if not found:
      raise copy.wrong(f"{name} is empty.")
    return found
