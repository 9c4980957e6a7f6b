"""Tables of `mico-jax data inspect`, `stats` and `verify`."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mico_jax.data.perceptual import alike
from mico_jax.data.survey import Looked

_EXAMPLE = 40  # characters of an example


@dataclasses.dataclass(frozen=True)
class Range:
  """Least, median and largest of some numbers, and how many there are."""

  count: int
  least: float
  median: float
  largest: float

  @classmethod
  def of(cls, values: Sequence[float]) -> Range | None:
    """The range of some numbers; None without any."""
    if not values:
      return None
    median = float(statistics.median(values))
    return cls(len(values), min(values), median, max(values))


def fields_table(samples: Iterable[Looked]) -> list[dict[str, Any]]:
  """Name, types, number of samples and an example of every field."""
  rows: dict[str, dict[str, Any]] = {}
  types: dict[str, Counter[str]] = {}
  for sample in samples:
    if sample.record is None:
      continue
    for name, value in sample.record.fields.items():
      row = rows.setdefault(str(name), {"field": str(name), "samples": 0})
      types.setdefault(str(name), Counter())[type(value).__name__] += 1
      row["samples"] += 1
      text = " ".join(str(value).split())
      row.setdefault("example", text[:_EXAMPLE])
  return [{**r, "type": " | ".join(types[n])} for n, r in rows.items()]


def media_table(samples: Iterable[Looked]) -> list[dict[str, Any]]:
  """Presence, file types, sizes and durations of every modality."""
  facts: dict[str, list[dict[str, Any]]] = {}
  broken: Counter[str] = Counter()
  for sample in samples:
    broken.update(sample.errors.keys())
    for key, fact in sample.media.items():
      facts.setdefault(key, []).append(fact)
  rows = []
  for key in dict.fromkeys((*facts, *broken)):
    if key == "record":
      continue
    of = facts.get(key, [])
    row: dict[str, Any] = {
      "modality": key,
      "samples": len(of),
      "broken": broken[key],
      "types": dict(Counter(str(f["type"]) for f in of if "type" in f)),
    }
    for name in ("bytes", "width", "height", "seconds", "frames"):
      span = Range.of([f[name] for f in of if name in f])
      if span is not None:
        row[name] = dataclasses.asdict(span)
    rows.append(row)
  return rows


def captions_table(
  samples: Iterable[Looked], tokens: Callable[[str], int] | None = None
) -> list[dict[str, Any]]:
  """Presence, number and lengths of the captions of every kind.

  Args:
    samples: of a source.
    tokens: text -> number of its tokens; None: words are counted alone.
  """
  kinds: dict[str, list[tuple[str, ...]]] = {}
  for sample in samples:
    if sample.record is not None:
      for kind, texts in sample.record.captions.items():
        kinds.setdefault(kind, []).append(texts)
  rows = []
  for kind, listed in kinds.items():
    texts = [text for group in listed for text in group]
    words = Range.of([len(text.split()) for text in texts])
    row: dict[str, Any] = {
      "kind": kind,
      "samples": len(listed),
      "texts": len(texts),
      "empty": sum(not text.strip() for text in texts),
      "different": len(set(texts)),
      "words": dataclasses.asdict(words) if words else None,
    }
    if tokens is not None:
      lengths = Range.of([tokens(text) for text in texts])
      row["tokens"] = dataclasses.asdict(lengths) if lengths else None
    rows.append(row)
  return rows


def coverage(samples: Iterable[Looked]) -> dict[str, int]:
  """Combination of modalities and captions -> number of samples."""
  counts: Counter[str] = Counter()
  for sample in samples:
    if sample.record is not None:
      captions = [f"{kind} caption" for kind in sorted(sample.record.captions)]
      parts = [*sorted(sample.media), *captions]
      counts[" + ".join(parts) or "nothing"] += 1
    else:
      counts["broken entry"] += 1
  return dict(counts.most_common())


def duplicates(samples: Sequence[Looked], distance: int = 0) -> dict[str, Any]:
  """Groups of samples: equal ids, equal files, pictures that look alike.

  Args:
    samples: looked at with `hashes`.
    distance: see `mico_jax.data.perceptual.alike`.

  Returns:
    "ids" (id -> indices), "files" and "pictures" (modality -> groups of
    indices).
  """
  ids: dict[str, list[int]] = {}
  contents: dict[str, dict[bytes, list[int]]] = {}
  hashes: dict[str, dict[int, int]] = {}
  for sample in samples:
    if sample.record is not None:
      ids.setdefault(sample.id, []).append(sample.index)
    for key, digest in sample.digests.items():
      contents.setdefault(key, {}).setdefault(digest, []).append(sample.index)
    for key, value in sample.hashes.items():
      hashes.setdefault(key, {})[sample.index] = value
  files = {
    key: [group for group in groups.values() if len(group) > 1]
    for key, groups in contents.items()
  }
  pictures = {key: alike(table, distance) for key, table in hashes.items()}
  return {
    "ids": {name: group for name, group in ids.items() if len(group) > 1},
    "files": {key: groups for key, groups in files.items() if groups},
    "pictures": {key: groups for key, groups in pictures.items() if groups},
  }


def bad(samples: Iterable[Looked]) -> list[dict[str, Any]]:
  """Index, id, modality and reason of everything that cannot be used."""
  return [
    {
      "index": sample.index,
      "id": sample.id,
      "modality": key,
      "reason": " ".join(reason.split()),
    }
    for sample in samples
    for key, reason in sample.errors.items()
  ]
