"""Credit card fraud: 284,807 payments of two days, of which 492 are fraud.

The publisher gives no split. Payments stand in the order of time, and the first
four fifths are learned from, so that nothing is learned from the future of what
is measured; the time itself is not read, since all times that are measured lie
beyond those of training.

Source: Dal Pozzolo et al., IEEE SSCI 2015; the table of ULB on Kaggle.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from mico_jax.config.fields import Range
from mico_jax.data.build.sets.base import Copy, OfficialSet
from mico_jax.data.columns import Entry, columns_of

_TABLE = "creditcard.csv"
TIME, LABEL = "Time", "Class"
COLUMNS = (TIME, *(f"V{i}" for i in range(1, 29)), "Amount", LABEL)
NAMES = {"0": "genuine", "1": "fraud"}


@dataclasses.dataclass(frozen=True)
class CreditCardFraud(OfficialSet):
  """Payments; the first `share` of them is learned from."""

  share: Annotated[float, Range(0.01, 0.99)] = 0.8

  title: ClassVar = "Credit card fraud, 284,807 payments"
  source: ClassVar = "https://www.kaggle.com/datasets/mlg-ulb/creditcardfraud"
  layout: ClassVar = (f"{_TABLE}   columns Time, V1 ... V28, Amount, Class",)
  steps: ClassVar = ("download creditcard.csv from the page of the source",)
  note: ClassVar = (
    "the first 80% in time to learn from, the rest is measured; fraud is what "
    "a head finds more likely than not"
  )

  def lines(self, copy: Copy) -> Iterator[dict[str, Any]]:
    """See `OfficialSet`; facts: `columns`, quantiles of the training part."""
    labels, times = self._labels(copy)
    if any(a > b for a, b in itertools.pairwise(times)):
      raise copy.wrong(f"{_TABLE}: payments do not stand in order of time.")
    count = round(self.share * len(labels))
    for split, part in (("train", labels[:count]), ("test", labels[count:])):
      if {*part} != {*NAMES}:
        raise copy.wrong(f"{_TABLE}: {split} has payments of one class only.")
    copy.total = len(labels)
    copy.facts = {"columns": self._columns(copy, count)}
    table = copy.reference(_TABLE)
    for i, label in enumerate(labels):
      yield {
        "id": str(i),
        "split": "train" if i < count else "test",
        "tabular": f"{table}:rows[{i}:{i + 1}]",
        "class_name": NAMES[label],
      }

  def _labels(self, copy: Copy) -> tuple[list[str], list[float]]:
    """Class and time of each row."""
    labels, times = [], []
    with open(copy.index(_TABLE), encoding="utf-8-sig", newline="") as file:
      rows = csv.reader(file)
      header = next(rows, [])
      if tuple(header) != COLUMNS:
        raise copy.wrong(f"{_TABLE} has the columns {', '.join(header)[:200]}.")
      for number, row in enumerate(rows, start=2):
        if len(row) != len(header) or row[-1] not in NAMES:
          raise copy.wrong(f"{_TABLE}, line {number}: {row!r:.100}.")
        labels.append(row[-1])
        times.append(float(row[0]))
    return labels, times

  def _columns(self, copy: Copy, count: int) -> tuple[Entry, ...]:
    """Columns as the first rows have them."""
    with tempfile.TemporaryDirectory() as folder:
      part = os.path.join(folder, "train.csv")
      with (
        open(copy.path(_TABLE), encoding="utf-8-sig") as file,
        open(part, "w", encoding="utf-8") as out,
      ):
        for _, line in zip(range(count + 1), file, strict=False):
          out.write(line)
      try:
        return columns_of(part, unread=(TIME, LABEL))
      except ValueError as error:
        raise copy.wrong(f"{_TABLE}: {error}") from error
