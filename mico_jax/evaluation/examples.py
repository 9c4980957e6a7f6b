"""Single queries behind the numbers: what was asked, found and written.

Evaluators hand over their scores; a few queries of each measurement are kept
with the items that they name, as small pictures and sounds, in `examples.json`.
The choice is a rule and no taste: the first queries, then those whose right
answer ranks worst.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mico_jax.data.records import Record
from mico_jax.data.samples import geometry, keys_of, load_inputs
from mico_jax.data.sheet import drawable, scale_of, tiles_of
from mico_jax.modalities import KNOWLEDGE, MODALITIES, DecodeError

if TYPE_CHECKING:
  from mico_jax.config import Config

EXAMPLES_FILE = "examples.json"  # of `evaluation.json`
FIRST, WORST = "first", "worst"  # why a query was chosen

_VERSION = 1  # of the file's layout
_ANSWERS = 5  # best answers kept of a query
_TILES = 3  # pictures kept of a modality
_SIDE = 128  # of a picture in pixels
_SECONDS = 10.0  # kept of a sound
_QUALITY = 80  # of JPEG


def examples_file(name: str) -> str:
  """The file of examples beside the results of a protocol, `<name>.json`."""
  return f"{name}.{EXAMPLES_FILE}"


@dataclasses.dataclass(frozen=True)
class Entry:
  """A query or an answer: a text, an item of the gallery, or both.

  Attributes:
    text: shown as it is.
    item: index in the gallery; None: only a text.
    score: as the measurement computed it; None: it has none.
    right: whether it is a right answer; None: it is a query, or unknown.
    place: in the order of the answers, 1 for the best; None: not ranked.
  """

  text: str = ""
  item: int | None = None
  score: float | None = None
  right: bool | None = None
  place: int | None = None


@dataclasses.dataclass(frozen=True)
class Example:
  """One query with its answers.

  Attributes:
    name: of the measurement, such as "retrieval/t->va".
    chosen: `FIRST` or `WORST`.
    letters: modalities of the items that it shows.
    query: what was asked.
    answers: best first; a right one that ranks behind them comes last.
    rank: of the best right answer, from 1; None: nothing is ranked.
    candidates: answers that were ranked; 0: nothing is ranked.
  """

  name: str
  chosen: str
  letters: str
  query: Entry
  answers: tuple[Entry, ...]
  rank: int | None = None
  candidates: int = 0


class Examples:
  """Collects the examples of an evaluation.

  Attributes:
    count: queries kept of each measurement; `evaluation.examples` of the
      config that is evaluated.
    found: the examples, in the order of the measurements.
    contents: what `examples.json` holds, after `show`.
  """

  def __init__(self) -> None:
    """Holds nothing yet."""
    self.count = 0
    self.found: list[Example] = []
    self.contents: dict[str, Any] = {}

  def add_ranking(
    self,
    name: str,
    letters: str,
    ranks: Int[np.ndarray, " Q"],
    row_of: Callable[
      [int], tuple[Float[np.ndarray, " G"], Bool[np.ndarray, " G"]]
    ],
    query: Callable[[int], Entry],
    answer: Callable[[int], Entry],
  ) -> None:
    """Keeps queries of a retrieval.

    Args:
      name: of the measurement.
      letters: modalities of the items.
      ranks: of the best right answer of each query, from 1.
      row_of: scores (higher is better) and right answers of a query.
      query: the entry of a query.
      answer: the entry of a candidate.
    """
    for row, chosen in choose(ranks, self.count):
      scores, relevant = row_of(row)
      # As ranks count: of equal scores the wrong ones come first.
      order = np.lexsort((relevant, -scores))
      places = list(range(min(_ANSWERS, len(order))))
      if ranks[row] > len(places):
        places.append(int(ranks[row]) - 1)
      answers = tuple(
        dataclasses.replace(
          answer(int(order[place])),
          score=float(scores[order[place]]),
          right=bool(relevant[order[place]]),
          place=place + 1,
        )
        for place in places
      )
      self.found.append(
        Example(
          name,
          chosen,
          letters,
          query(row),
          answers,
          rank=int(ranks[row]),
          candidates=len(scores),
        )
      )

  def add_written(
    self,
    name: str,
    letters: str,
    queries: Sequence[Entry],
    written: Sequence[str],
    true: Sequence[Sequence[str]],
    scores: Float[np.ndarray, " N"],
  ) -> None:
    """Keeps texts that the model wrote, beside the true ones.

    Args:
      name: of the measurement.
      letters: modalities of the items.
      queries: what the texts were written for.
      written: by the model.
      true: texts of each query.
      scores: of the written texts, higher is better.
    """
    # Equal scores have equal ranks: of 0/1 scores, the wrong ones are worst.
    values = np.asarray(scores)
    better = np.searchsorted(np.sort(values), values, side="right")
    ranks = 1 + len(values) - better
    for row, chosen in choose(ranks, self.count):
      texts = [Entry(written[row], score=float(scores[row]))]
      texts += [Entry(text, right=True) for text in true[row]]
      self.found.append(
        Example(name, chosen, letters, queries[row], tuple(texts))
      )

  def show(
    self, config: Config, source: str, records: Sequence[Record | None]
  ) -> None:
    """Reads pictures and sounds of all items that are named.

    Args:
      config: of the evaluation.
      source: name of the data source.
      records: of the gallery.
    """
    wanted: dict[int, str] = {}
    for example in self.found:
      for entry in (example.query, *example.answers):
        if entry.item is not None:
          letters = wanted.get(entry.item, "")
          wanted[entry.item] = letters + example.letters
    items = {
      str(item): _shown(config, source, records[item], wanted[item])
      for item in sorted(wanted)
    }
    self.contents = {
      "version": _VERSION,
      "source": source,
      "examples": [_plain(example) for example in self.found],
      "items": items,
    }


def choose(ranks: Int[np.ndarray, " Q"], count: int) -> list[tuple[int, str]]:
  """Rows to show: half the first ones, then those of the worst ranks above 1.

  Args:
    ranks: of the right answers, from 1.
    count: rows wanted; fewer where fewer are left.

  Returns:
    Rows and why they were chosen.
  """
  first = list(range(min((count + 1) // 2, len(ranks))))
  worst = [
    int(row)
    for row in np.argsort(-ranks, kind="stable")
    if ranks[row] > 1 and row >= len(first)
  ]
  rows = [(row, FIRST) for row in first]
  return rows + [(row, WORST) for row in worst[: count - len(first)]]


def _plain(example: Example) -> dict[str, Any]:
  """An example without the fields that say nothing."""

  def entry(value: Entry) -> dict[str, Any]:
    out = dataclasses.asdict(value)
    if value.score is not None:
      out["score"] = round(value.score, 6) if np.isfinite(value.score) else None
    return {k: v for k, v in out.items() if v is not None and v != ""}

  out: dict[str, Any] = dataclasses.asdict(example)
  out["query"] = entry(example.query)
  out["answers"] = [entry(answer) for answer in example.answers]
  return out


def _shown(
  config: Config, source: str, record: Record | None, letters: str
) -> dict[str, Any]:
  """Id, captions, pictures and sound of an item, as the model was given it."""
  if record is None:
    return {"id": "", "broken": "could not be read"}
  out: dict[str, Any] = {
    "id": record.id,
    "captions": {kind: list(x[:1]) for kind, x in record.captions.items()},
  }
  # Also what can serve, as an image serves for a video.
  wanted = {MODALITIES[key].letter for key in keys_of(letters)}
  shares = lambda key: MODALITIES[key].head in wanted
  keys = [k for k in KNOWLEDGE if MODALITIES[k].letter in wanted or shares(k)]
  try:
    inputs = load_inputs(config, record, source, keys, None, broken={})
    out["tiles"] = [
      {"modality": key, "title": title, "jpeg": as_jpeg(picture)}
      for key in inputs
      for title, picture in _some(
        tiles_of(
          key, drawable(config, key, inputs[key]), scale_of(config, key).values
        )
      )
    ]
    sounds = [_sound(config, source, record, key) for key in inputs]
    out["sounds"] = [sound for sound in sounds if sound]
  except DecodeError as error:
    out["broken"] = str(error)
  return out


def _some(tiles: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
  """At most `_TILES` of a list, evenly spaced."""
  picks = np.linspace(0, len(tiles) - 1, min(_TILES, len(tiles)))
  return [tiles[round(i)] for i in picks]


def as_jpeg(picture: UInt8[np.ndarray, "Y X *C"]) -> str:
  """A small JPEG in base64."""
  from PIL import Image

  image = Image.fromarray(picture).convert("RGB")
  scale = _SIDE / max(image.size)
  small = scale > 1  # as the model sees it, with its pixels
  image = image.resize(
    (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
    Image.Resampling.NEAREST if small else Image.Resampling.BOX,
  )
  out = io.BytesIO()
  image.save(out, "JPEG", quality=_QUALITY)
  return base64.b64encode(out.getvalue()).decode()


def _sound(
  config: Config, source: str, record: Record, key: str
) -> dict[str, str]:
  """A sound as FLAC in base64, from its start; {}: it makes none."""
  modality = MODALITIES[key]
  if modality.play is None or key not in record.media:
    return {}
  import soundfile

  sizes = geometry(config, key, source)
  decoded = modality.decode(record.media[key](), sizes)
  samples, rate = modality.play(decoded, sizes)
  out = io.BytesIO()
  samples = np.clip(samples[: int(_SECONDS * rate)], -1, 1)
  soundfile.write(out, samples, rate, format="FLAC", subtype="PCM_16")
  return {
    "modality": key,
    "flac": base64.b64encode(out.getvalue()).decode(),
  }
