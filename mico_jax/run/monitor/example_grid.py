"""Single queries as pictures: what was asked, found and written.

Everything comes from `examples.json`, as `mico_jax.evaluation.examples` writes
it; no model is opened.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mico_jax.evaluation.examples import FIRST, WORST
from mico_jax.evaluation.shown_items import one_tile_each, picture_of
from mico_jax.modalities.wording import in_words, result_in_words
from mico_jax.run.monitor.curves import GREY, INK

if TYPE_CHECKING:
  from matplotlib.axes import Axes

RIGHT, WRONG = "#1A7F4B", "#B3261E"
_LETTER = 0.0074  # inches, mean width of a letter of 1 pt
_LINE = 0.165  # inches from line to line
_TILE = 0.72  # inches, the largest side of a tile
_LEAST = 0.4  # inches, the smallest one that can be recognised
_SIDE = 0.55  # inches, of a tile beside a text
_TEXT_ROW = 0.8  # inches, of written and true text in two lines each
_TOLD = 1.5  # inches for a score at the right
_GAP = 0.05
_QUERIES = 4  # drawn of a measurement
_WRITTEN = 3
_MODALITIES = 3  # shown beside a text


def ranked(contents: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The queries of a retrieval to draw: the first ones and the worst.

  Of texts for items rather than the other way round, and of them the retrieval
  of most modalities.

  Args:
    contents: of `examples.json`; {}: there is none.
  """
  found = [x for x in contents.get("examples") or () if x.get("candidates")]
  if not found:
    return []
  asks = lambda x: bool(x["query"].get("text"))
  name = max(found, key=lambda x: (asks(x), len(x["letters"])))["name"]
  mine = [x for x in found if x["name"] == name]
  half = _QUERIES // 2
  first = [x for x in mine if x["chosen"] == FIRST]
  worst = [x for x in mine if x["chosen"] == WORST][:half]
  return first[: _QUERIES - len(worst)] + worst


def written(contents: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The texts that the model wrote to draw: the first ones and the worst.

  Args:
    contents: of `examples.json`; {}: there is none.
  """
  found = [
    x
    for x in contents.get("examples") or ()
    if not x.get("candidates") and x["answers"]
  ]
  mine = [x for x in found if x["name"] == found[0]["name"]]
  worst = [x for x in mine if x["chosen"] == WORST][: _WRITTEN // 2]
  first = [x for x in mine if x["chosen"] == FIRST]
  return first[: _WRITTEN - len(worst)] + worst


class Canvas:
  """Axes measured in inches from the upper left corner.

  Attributes:
    axes: without ticks.
    width: in inches.
  """

  def __init__(self, axes: Axes, width: float, height: float):
    """Takes over axes of that size."""
    self.axes, self.width = axes, width
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))

  def text(self, x: float, y: float, text: str, **style: Any) -> None:
    """Puts a text whose upper left corner is at (x, y)."""
    style = {"fontsize": 8.5, "color": INK, "va": "top", **style}
    self.axes.text(x, y, text, parse_math=False, **style)

  def picture(self, x: float, y: float, side: float, tile: Any) -> None:
    """Puts a picture into a square; a note if it cannot be read."""
    try:
      pixels = picture_of(tile)
    except ValueError:
      self.text(x, y, "not a\npicture", fontsize=7, color=GREY)
      return
    rows, columns = pixels.shape[:2]
    scale = side / max(rows, columns)
    self.axes.imshow(
      pixels,
      extent=(x, x + columns * scale, y + rows * scale, y),
      interpolation="nearest",
      aspect="auto",
    )

  def frame(self, x: float, y: float, size: tuple[float, float], right: bool):
    """Frames an answer: a full line for a right one, a thin one for wrong."""
    from matplotlib.patches import Rectangle

    color, width = (RIGHT, 2.6) if right else (WRONG, 0.8)
    self.axes.add_patch(
      Rectangle((x, y), *size, fill=False, edgecolor=color, linewidth=width)
    )


def _wrap(text: str, width: float, lines: int, size: float = 8.5) -> str:
  """A text cut to that many lines of a width in inches."""
  letters = max(8, int(width / (size * _LETTER)))
  return "\n".join(
    textwrap.wrap(text, letters, max_lines=lines, placeholder=" ...")
  )


@dataclasses.dataclass(frozen=True)
class _Row:
  """Where the parts of a query lie.

  Attributes:
    query: its text, wrapped.
    width: of an answer, in inches.
    side: of a tile.
    asked: inches of the pictures of the query, 0 without.
  """

  query: str
  width: float
  side: float
  asked: float

  @property
  def above(self) -> float:
    """Inches from the top to the answers."""
    return 0.06 + _LINE * max(1, self.query.count("\n") + 1) + self.asked

  @property
  def height(self) -> float:
    """Inches from this query to the next."""
    return self.above + self.side + 2 * _GAP + 0.28


def _row_of(example: Mapping[str, Any], width: float, columns: int) -> _Row:
  query = example["query"]
  text = f"“{query['text']}”" if query.get("text") else ""
  asked = 0.0 if query.get("item") is None else _TILE
  each = width / columns
  count = len(str(example["letters"]))
  fits = (each - 4 * _GAP - _GAP * (count - 1)) / count
  texts = all(x.get("item") is None for x in example["answers"])
  side = _TILE if texts else max(_LEAST, min(_TILE, fits))
  return _Row(_wrap(text, width - 1.9, 2), each, side, asked)


def _rows(examples: Sequence[Mapping[str, Any]], width: float) -> list[_Row]:
  columns = max(len(x["answers"]) for x in examples)
  return [_row_of(example, width, columns) for example in examples]


def ranked_height(examples: Sequence[Mapping[str, Any]], width: float) -> float:
  """Inches that `draw_ranked` needs."""
  if not examples:
    return 0.0
  return 0.3 + sum(row.height for row in _rows(examples, width))


def draw_ranked(
  canvas: Canvas,
  examples: Sequence[Mapping[str, Any]],
  items: Mapping[str, Any],
) -> None:
  """Draws queries, each above its answers, which are marked right or wrong.

  Args:
    canvas: of `ranked_height`.
    examples: from `ranked`.
    items: of the same file.
  """
  title = result_in_words(str(examples[0]["name"]))
  count = examples[0]["candidates"]
  canvas.text(0, 0, f"{title}: best answers of {count}", fontsize=10)
  letters = str(examples[0]["letters"])
  shown = ", ".join(filter(None, (in_words(letter) for letter in letters)))
  canvas.text(
    *(canvas.width, 0.02, f"pictures of an item: {shown}"),
    ha="right",
    fontsize=8,
    color=GREY,
  )
  y = 0.3
  rows = _rows(examples, canvas.width)
  for example, row in zip(examples, rows, strict=True):
    _draw_query(canvas, y, example, row, items)
    top = y + row.above
    for place, answer in enumerate(example["answers"]):
      x = place * row.width
      size = (row.width - 2 * _GAP, row.side + 2 * _GAP)
      canvas.frame(x, top, size, bool(answer.get("right")))
      inner = (x + _GAP, top + _GAP, size[0] - 2 * _GAP, row.side)
      _draw_entry(canvas, inner, answer, items, letters)
      _draw_mark(canvas, x, top + size[1], answer)
    y += row.height


def _draw_query(
  canvas: Canvas,
  y: float,
  example: Mapping[str, Any],
  row: _Row,
  items: Mapping[str, Any],
) -> None:
  """Draws what was asked, and at which place the right answer came."""
  rank, query = example.get("rank"), example["query"]
  told = f"right at place {rank}" if rank else ""
  told += " (of the worst)" if example["chosen"] == WORST else ""
  color = RIGHT if rank == 1 else WRONG
  canvas.text(canvas.width, y, told, ha="right", fontsize=8, color=color)
  canvas.text(0, y, row.query, weight="bold")
  if query.get("item") is not None:
    inner = (0.0, y + row.above - row.asked - _GAP, canvas.width, row.asked)
    _draw_entry(canvas, inner, query, items, str(example["letters"]))


def _draw_mark(
  canvas: Canvas, x: float, y: float, answer: Mapping[str, Any]
) -> None:
  """Place, right or wrong, and score below an answer."""
  right = bool(answer.get("right"))
  mark = "✓ right" if right else "✗ wrong"
  score = answer.get("score")
  text = f"{answer.get('place', '')}. {mark}"
  canvas.text(
    *(x, y + 0.04, text),
    fontsize=8,
    color=RIGHT if right else WRONG,
    **({"weight": "bold"} if right else {}),
  )
  if score is not None:
    canvas.text(x + 0.75, y + 0.04, f"{score:.3f}", fontsize=8, color=GREY)


def _draw_entry(
  canvas: Canvas,
  place: tuple[float, float, float, float],
  entry: Mapping[str, Any],
  items: Mapping[str, Any],
  letters: str,
) -> None:
  """Draws pictures of an item, or a text, into (x, y, width, side)."""
  x, y, width, most = place
  if entry.get("item") is None:
    lines = int(most / _LINE)
    canvas.text(
      x, y, _wrap(str(entry.get("text", "")), width, lines, 8), fontsize=8
    )
    return
  item = items.get(str(entry["item"]), {})
  tiles = one_tile_each(item, letters)
  if not tiles:
    note = str(item.get("broken") or item.get("id") or "no picture")
    canvas.text(x, y, _wrap(note, width, 3, 7.5), fontsize=7.5, color=GREY)
    return
  tiles = tiles[: max(1, int((width + _GAP) / (_LEAST + _GAP)))]
  side = min(most, (width - _GAP * (len(tiles) - 1)) / len(tiles))
  for index, tile in enumerate(tiles):
    canvas.picture(x + index * (side + _GAP), y, side, tile)


def written_height(
  examples: Sequence[Mapping[str, Any]], width: float
) -> float:
  """Inches that `draw_written` needs, of any width."""
  del width
  return 0.3 + len(examples) * _TEXT_ROW if examples else 0.0


def draw_written(
  canvas: Canvas,
  examples: Sequence[Mapping[str, Any]],
  items: Mapping[str, Any],
) -> None:
  """Draws items beside the text that the model wrote and the true one.

  Args:
    canvas: of `written_height`.
    examples: from `written`.
    items: of the same file.
  """
  title = result_in_words(str(examples[0]["name"]))
  canvas.text(0, 0, f"{title}: written and true texts", fontsize=10)
  if any(x.get("attention") for x in items.values()):
    note = "darkened: what the encoder attends to stays bright"
    canvas.text(*(canvas.width, 0.02, note), ha="right", fontsize=8, color=GREY)
  for index, example in enumerate(examples):
    y = top = 0.3 + index * _TEXT_ROW
    letters, x = str(example["letters"]), 0.0
    if example["query"].get("item") is not None:
      item = items.get(str(example["query"]["item"]), {})
      tiles = one_tile_each(item, letters)
      tiles += one_tile_each(item, letters, "attention")
      x = _SIDE + _GAP if not tiles else 0.0
      for tile in tiles[: 2 * _MODALITIES]:
        canvas.picture(x, y, _SIDE, tile)
        x += _SIDE + _GAP
      x += 0.1
    true = [a for a in example["answers"] if a.get("right")]
    wrote = [a for a in example["answers"] if not a.get("right")]
    worst = "one of the worst" if example["chosen"] == WORST else ""
    for name, answers in (("written", wrote), ("true", true)):
      if not answers:
        continue
      width = canvas.width - x - 0.6 - _TOLD
      color = INK if name == "true" else "#0072B2"
      canvas.text(x, y, name, fontsize=8, color=GREY)
      text = _wrap(str(answers[0].get("text", "")), width, 2)
      canvas.text(x + 0.6, y, text, color=color)
      y += _LINE * (1 + text.count("\n")) + 0.03
    score = wrote[0].get("score") if wrote else None
    told = [f"score {score:.3f}"] if score is not None else []
    told += [worst] * bool(worst)
    style = {"ha": "right", "fontsize": 8, "color": GREY}
    canvas.text(canvas.width, top, "\n".join(told), **style)
