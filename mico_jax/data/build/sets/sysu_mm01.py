"""SYSU-MM01: people seen by four visible and two near-infrared cameras.

Cameras 3 and 6 see near infrared at night; their pictures are read as those of
a thermal camera, grey without a scale. Training people are those of `train_id`
and `val_id`, as in published work, 395 of 491.

Cameras 2 and 3 hang in one place, and the protocol leaves pictures of camera 2
out where camera 3 asks: the field `place` is the same for both.

Source: Wu et al., ICCV 2017, sections 3 and 6.1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from mico_jax.data.build.sets.base import Copy, OfficialSet

CAMERAS = {1: "image", 2: "image", 3: "thermal", 4: "image", 5: "image",
           6: "thermal"}  # fmt: skip
_PLACES = {2: "camera 2 and 3", 3: "camera 2 and 3"}
_SPLITS = {"train": ("train_id", "val_id"), "test": ("test_id",)}


@dataclasses.dataclass(frozen=True)
class SysuMM01(OfficialSet):
  """People by four visible and two near-infrared cameras."""

  title: ClassVar = "SYSU-MM01, near infrared to visible, all search"
  source: ClassVar = "https://github.com/wuancong/SYSU-MM01"
  layout: ClassVar = (
    "cam1/PERSON/*.jpg to cam6/   PERSON is four digits; 3 and 6 are infrared",
    "exp/train_id.txt, exp/val_id.txt, exp/test_id.txt   numbers with commas",
  )
  steps: ClassVar = ("ask the publisher for the data set, as its page tells",)
  # 22,258 visible and 11,909 infrared pictures of 395 people.
  counts: ClassVar = {"train": 34_167}
  note: ClassVar = "training: people of train_id and val_id"

  def lines(self, copy: Copy) -> Iterator[dict[str, Any]]:
    """See `OfficialSet`."""
    people = {
      split: [n for name in names for n in self._people(copy, name)]
      for split, names in _SPLITS.items()
    }
    if twice := {*people["train"]} & {*people["test"]}:
      raise copy.wrong(f"person {min(twice)} is in training and in testing.")
    for camera in CAMERAS:
      if not copy.has(f"cam{camera}"):
        raise copy.wrong(f"there is no folder cam{camera}.")
    lines = [
      line
      for split, numbers in people.items()
      for number in numbers
      for camera, key in CAMERAS.items()
      for line in self._pictures(copy, split, number, camera, key)
    ]
    copy.total = len(lines)
    yield from lines

  def _people(self, copy: Copy, name: str) -> list[int]:
    """Numbers of people in a file of `exp/`."""
    text = copy.text(f"exp/{name}.txt").strip()
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
      raise copy.wrong(f"exp/{name}.txt holds {text[:60]!r}.")
    return [int(x) for x in text.split(",")]

  def _pictures(
    self, copy: Copy, split: str, number: int, camera: int, key: str
  ) -> Iterator[dict[str, Any]]:
    """Those of a person by a camera, who need not have been seen by it."""
    folder = f"cam{camera}/{number:04d}"
    if not copy.has(folder):
      return
    for name in copy.files(folder):
      path = f"{folder}/{name}"
      yield {
        "id": path,
        "split": split,
        key: copy.reference(path),
        "identity": f"{number:04d}",
        "camera": f"cam{camera}",
        "place": _PLACES.get(camera, f"camera {camera}"),
      }
