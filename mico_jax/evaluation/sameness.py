"""Samples of a gallery that show the same, and samples that cannot be read.

A clip that a set lists several times, once for each of its captions, would be
its own wrong answer, and count as several independent ones. Samples of one id
that show the same to the bit are therefore one item with the texts of all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from mico_jax.data.identity import tell
from mico_jax.data.records import Record

_NAMED = 3  # most samples of a note


class Contents:
  """Hashes of what samples show, by modality."""

  def __init__(self, keys: Sequence[str]):
    """Takes the modalities that are read."""
    self._found: dict[str, list[int]] = {key: [] for key in keys}

  def add(self, inputs: Mapping[str, Any], count: int) -> None:
    """The first `count` rows of a batch."""
    for key, hashes in self._found.items():
      hashes += [_hash(inputs[key], row) for row in range(count)]

  def arrays(self) -> dict[str, Int[np.ndarray, " N"]]:
    """Modality -> hash of each sample."""
    return {k: np.asarray(v, np.int64) for k, v in self._found.items()}


def _hash(value: Any, row: int) -> int:
  """Of one row of an array, or of arrays by name."""
  digest = hashlib.blake2b(digest_size=8)
  parts = value.values() if isinstance(value, Mapping) else (value,)
  for part in parts:
    digest.update(np.asarray(part[row]).tobytes())
  return int.from_bytes(digest.digest(), "little", signed=True)


def merge_repeats(
  records: Sequence[Record | None],
  contents: Mapping[str, Int[np.ndarray, " N"]],
  present: Mapping[str, Bool[np.ndarray, " N"]],
  source: str,
  *,
  label: str = "",
) -> tuple[list[Record | None], frozenset[int]]:
  """Makes one item of the samples of one id and label that show the same.

  Args:
    records: of the samples; None: it could not be read.
    contents: modality -> hash of what each sample shows.
    present: modality -> whether a sample has it; one without any is its own.
    source: name of the source, for the notes on stderr.
    label: record field with the class, besides `label` and `labels`.

  Returns:
    The records, the first of each item with the texts of all, and the places of
    the others.
  """
  out, repeats = list(records), set()
  first: dict[Any, int] = {}
  shown: dict[Any, int] = {}
  other: list[str] = []
  labels: list[str] = []
  for i, record in enumerate(records):
    if record is None or not any(has[i] for has in present.values()):
      continue
    content = tuple(int(hashes[i]) for hashes in contents.values())
    meant = json.dumps(_labels(record, label), default=str)
    at = first.setdefault((record.id, content, meant), i)
    if at != i:
      out[at] = _merged(out[at], record)
      repeats.add(i)
    elif shown.setdefault(content, i) != i:
      same = records[shown[content]]
      if same is not None and same.id != record.id:
        other.append(f"{record.id!r} = {same.id!r}")
      else:
        labels.append(repr(record.id))
  if repeats:
    names = dict.fromkeys(r.id for i in sorted(repeats) if (r := records[i]))
    tell(
      f"source {source!r}: {len(repeats)} samples repeat another one with its "
      f"id ({_some(list(names))}) and show the same; they are one item, with "
      "the texts of all."
    )
  if other:
    tell(
      f"source {source!r}: {len(other)} samples show exactly what another one "
      f"shows, under another id ({_some(other)}); they count as different "
      "items, which no model can tell apart."
    )
  if labels:
    tell(
      f"source {source!r}: {len(labels)} samples repeat another one with its "
      f"id ({_some(labels)}) and have another label; they count as different "
      "items."
    )
  return out, frozenset(repeats)


def _labels(record: Record, label: str) -> list[Any]:
  """What a record says of its classes."""
  named = sorted({"label", "labels", label} - {""})
  return [record.fields.get(name) for name in named]


def gallery_hashes(
  records: Sequence[Record | None],
  contents: Mapping[str, Int[np.ndarray, " N"]],
  repeats: frozenset[int],
  label: str,
) -> tuple[str, str]:
  """SHA-256 of the samples that were read, in any order, and of their inputs.

  The first is of ids, texts and labels, the second of what the samples show as
  it was decoded and preprocessed.

  Args:
    records: of a gallery.
    contents: modality -> hash of what each shows.
    repeats: places that do not count.
    label: record field with the class, besides `label` and `labels`.
  """
  keys = sorted(contents)
  said, shown = [], []
  for i, record in enumerate(records):
    if record is None or i in repeats:
      continue
    kinds = {k: list(v) for k, v in record.captions.items()}
    asked = list(map(list, record.questions))
    answers = record.fields.get("answers")
    said.append([record.id, kinds, asked, answers, _labels(record, label)])
    shown.append([record.id, *(int(contents[key][i]) for key in keys)])
  return _sorted_sha256(said), _sorted_sha256(shown)


def _sorted_sha256(lines: Sequence[Any]) -> str:
  texts = [json.dumps(line, sort_keys=True, default=str) for line in lines]
  return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()


def _merged(one: Record | None, other: Record) -> Record:
  """A record with the texts of another one behind its own, each once."""
  if one is None:
    return other
  join = lambda a, b: {
    kind: tuple(dict.fromkeys((*a.get(kind, ()), *b.get(kind, ()))))
    for kind in dict.fromkeys((*a, *b))
  }
  fields = dict(one.fields)
  questions = list(one.questions)
  if set(other.questions) - set(questions):
    questions += other.questions
    if "answers" in fields:  # a list for each question
      more = other.fields.get("answers") or ()
      fields["answers"] = [*(fields["answers"] or ()), *more]
  return dataclasses.replace(
    one,
    captions=join(one.captions, other.captions),
    negatives=join(one.negatives, other.negatives),
    questions=tuple(questions),
    fields=fields,
  )


def _some(names: Sequence[str]) -> str:
  return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


class Broken:
  """Counts what could not be read of the samples of a gallery."""

  def __init__(self, source: str):
    """Takes the name of the source."""
    self._source = source
    self._count: Counter[str] = Counter()
    self._reason: dict[str, tuple[int, str]] = {}

  def add(self, place: int, reasons: Mapping[str, str]) -> None:
    """Takes modality -> reason of one sample."""
    for what, reason in reasons.items():
      self._count[what] += 1
      self._reason.setdefault(what, (place, reason))

  def tell(self, total: int) -> None:
    """Says on stderr how many there are, and why the first is one."""
    for what, count in self._count.items():
      place, reason = self._reason[what]
      tell(
        f"source {self._source!r}: {what} cannot be read of {count} of {total} "
        f"samples; the first, number {place}: {reason:.300}"
      )
