"""PCQM4Mv2: molecules and the gap between their frontier orbitals, in eV.

The official split comes as a pickle of torch, which nothing here opens, as a
pickle can run code: whoever trusts the file turns it into arrays by the command
in `steps`. Labels of both test parts are not public, so `valid` is measured, as
published work does. Molecules are graphs of SMILES (extra `molecules`).

Source: Hu et al., arXiv:2103.09430.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Shaped

from mico_jax.data.build.sets.base import Copy, OfficialSet

_TABLE, _SPLIT = "raw/data.csv.gz", "split.npz"
_COLUMNS = ("idx", "smiles", "homolumogap")
_PARTS = ("train", "valid")


@dataclasses.dataclass(frozen=True)
class Pcqm4Mv2(OfficialSet):
  """Molecules and their HOMO-LUMO gap."""

  title: ClassVar = "PCQM4Mv2, HOMO-LUMO gap"
  source: ClassVar = "https://ogb.stanford.edu/docs/lsc/pcqm4mv2/"
  layout: ClassVar = (
    f"{_TABLE}   columns {', '.join(_COLUMNS)}",
    f"{_SPLIT}         arrays train and valid, made of split_dict.pt",
  )
  steps: ClassVar = (
    "download and unpack pcqm4m-v2.zip from the page of the source",
    "in it, if you trust the file: python -c \"import numpy, torch; "
    "numpy.savez('split.npz', **torch.load('split_dict.pt', "
    "weights_only=False))\"",
  )  # fmt: skip
  counts: ClassVar = {"train": 3_378_606, "valid": 73_545}
  note: ClassVar = "measured on `valid`, since labels of the tests are hidden"

  def lines(self, copy: Copy) -> Iterator[dict[str, Any]]:
    """See `OfficialSet`; facts: `mean` and `scale` of the training part."""
    part = self._parts(copy)
    copy.total = int((part >= 0).sum())
    number, mean, squares = 0, 0.0, 0.0
    for row in self._rows(copy):
      index = int(row["idx"])
      if index >= len(part) or part[index] < 0:
        continue
      split = _PARTS[part[index]]
      try:
        gap = float(row["homolumogap"])
      except ValueError:
        raise copy.wrong(f"{_TABLE}: molecule {index} has no gap.") from None
      if split == _PARTS[0]:  # by Welford
        number += 1
        apart = gap - mean
        mean += apart / number
        squares += apart * (gap - mean)
      part[index] = -1
      yield {
        "id": str(index),
        "split": split,
        "graph": row["smiles"],
        "homolumogap": gap,
      }
    if (part >= 0).any():
      lost = int(np.argmax(part >= 0))
      raise copy.wrong(f"{_SPLIT} names molecule {lost}, {_TABLE} does not.")
    if not squares:
      raise copy.wrong("all gaps of the training part are equal.")
    copy.facts = {"mean": mean, "scale": math.sqrt(squares / number)}

  def _parts(self, copy: Copy) -> Shaped[np.ndarray, " N"]:
    """The part of each molecule, -1: none."""
    try:
      with np.load(copy.index(_SPLIT), allow_pickle=False) as arrays:
        found = [np.asarray(arrays[name]).reshape(-1) for name in _PARTS]
    except (ValueError, KeyError, OSError) as error:
      raise copy.wrong(f"{_SPLIT} is not readable: {error}.") from error
    if any(x.dtype.kind not in "iu" or not len(x) for x in found):
      raise copy.wrong(f"{_SPLIT} holds no numbers of molecules.")
    if min(x.min() for x in found) < 0:
      raise copy.wrong(f"{_SPLIT} holds numbers below 0.")
    part = np.full(max(int(x.max()) for x in found) + 1, -1, np.int8)
    for i, numbers in enumerate(found):
      if (part[numbers] >= 0).any() or len(np.unique(numbers)) < len(numbers):
        raise copy.wrong(f"{_SPLIT} names a molecule twice.")
      part[numbers] = i
    return part

  def _rows(self, copy: Copy) -> Iterator[dict[str, str]]:
    """Rows of the table."""
    with gzip.open(copy.index(_TABLE), "rb") as file:
      try:
        rows = csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""))
        missing = {*_COLUMNS} - {*(rows.fieldnames or ())}
        if missing:
          raise copy.wrong(f"{_TABLE} has no column {min(missing)}.")
        yield from rows
      except (OSError, EOFError, csv.Error, UnicodeDecodeError) as error:
        raise copy.wrong(f"{_TABLE} is not readable: {error}.") from error
