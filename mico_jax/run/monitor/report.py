"""The picture of a run: `<workdir>/report.png`.

On top a few numbers, then all shares of the final evaluation and the facts that
are confused, retrieved items and written texts, and the curves that matter,
from `metrics.jsonl` and, where present, `evaluation.json` and `examples.json`.
`draw_curves` draws every curve there is (`mico_jax.run.monitor.curves`).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from mico_jax import files
from mico_jax.evaluation.examples import EXAMPLES_FILE
from mico_jax.run.monitor import example_grid, headlines, metric_log
from mico_jax.run.monitor.curves import (
  GREY,
  INK,
  Panel,
  collect,
  draw_panel,
  overview,
)

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

REPORT_FILE = "report.png"
EVALUATION_FILE = "evaluation.json"

_COLUMNS = 3  # of `draw_curves`
_WIDTH, _MARGIN = 10.0, 0.2  # of a report, in inches
_GAP = 0.25  # between its parts
_DPI = 130
_COLOURS = 256  # of the file


class _Page:
  """Parts of a figure from top to bottom, placed in inches.

  Placed by hand, as the layout engines of matplotlib take seconds for as many
  axes and texts.
  """

  def __init__(self) -> None:
    self._parts: list[tuple[float, Callable[[Figure, float, float], None]]] = []

  def add(
    self, height: float, draw: Callable[[Figure, float, float], None]
  ) -> None:
    """Adds a part; `draw` gets the figure, its top and the page's height."""
    self._parts.append((height, draw))

  def figure(self) -> Figure:
    from matplotlib.figure import Figure

    total = 2 * _MARGIN + sum(height + _GAP for height, _ in self._parts)
    figure = Figure(figsize=(_WIDTH, total))
    top = total - _MARGIN
    for height, draw in self._parts:
      draw(figure, top, total)
      top -= height + _GAP
    return figure


def _axes(
  figure: Figure, left: float, top: float, size: tuple[float, float]
) -> Axes:
  """Axes whose upper left corner and size are given in inches."""
  width, height = figure.get_size_inches()
  box = (
    left / width,
    (top - size[1]) / height,
    size[0] / width,
    size[1] / height,
  )
  return figure.add_axes(box)


_INNER = _WIDTH - 2 * _MARGIN


def _add_title(page: _Page, title: str, note: str) -> None:
  def draw(figure: Figure, top: float, _: float) -> None:
    canvas = example_grid.Canvas(
      _axes(figure, _MARGIN, top, (_INNER, 0.45)), _INNER, 0.45
    )
    canvas.text(0, 0, title, fontsize=14, weight="bold")
    canvas.text(0, 0.28, note, fontsize=8.5, color=GREY)

  page.add(0.4, draw)


def _add_numbers(page: _Page, evaluation: Mapping[str, Any]) -> None:
  """Numbers on top, then bars of all shares beside the facts confused."""
  top_numbers = headlines.cards(evaluation)
  if top_numbers:
    page.add(
      1.15,
      lambda figure, top, _: headlines.draw_cards(
        _axes(figure, _MARGIN, top, (_INNER, 1.1)), top_numbers
      ),
    )
  shown = headlines.bars(evaluation)
  found = headlines.facts(evaluation)
  if not shown and not found:
    return
  rows = max(len(shown) * 0.18, 0.3 * len(next(iter(found.values()), ())), 0.4)

  def draw(figure: Figure, top: float, _: float) -> None:
    left = _MARGIN + 3.0
    right = 3.4 if found else _WIDTH - left - 0.7
    if shown:
      headlines.draw_bars(
        _axes(figure, left, top - 0.25, (right - 0.9, rows)), shown
      )
    if found:
      left = _WIDTH - 2.85 if shown else left
      below = 0.25 + 0.14 * len(found)
      size = (_WIDTH - left - 0.2, rows - 0.14 * len(found))
      headlines.draw_facts(_axes(figure, left, top - below, size), found)

  page.add(rows + 0.6, draw)


def _add_examples(page: _Page, contents: Mapping[str, Any]) -> None:
  items = contents.get("items") or {}
  for choose, height_of, paint in (
    (
      example_grid.ranked,
      example_grid.ranked_height,
      example_grid.draw_ranked,
    ),
    (
      example_grid.written,
      example_grid.written_height,
      example_grid.draw_written,
    ),
  ):
    chosen = choose(contents)
    if not chosen:
      continue
    height = height_of(chosen, _INNER)

    def draw(
      figure: Figure,
      top: float,
      _: float,
      chosen: Any = chosen,
      height: float = height,
      paint: Any = paint,
    ) -> None:
      axes = _axes(figure, _MARGIN, top, (_INNER, height))
      paint(example_grid.Canvas(axes, _INNER, height), chosen, items)

    page.add(height, draw)


def _add_curves(
  page: _Page, panels: Sequence[Panel], events: Sequence[float], last: float
) -> None:
  large, small = overview(panels)
  columns = 4 if len(large) > 3 else max(len(large), 2)
  for group, columns, height in ((large, columns, 1.75), (small, 5, 0.9)):
    for start in range(0, len(group), columns):
      row = group[start : start + columns]

      def draw(
        figure: Figure,
        top: float,
        _: float,
        row: Sequence[Panel] = row,
        columns: int = columns,
        height: float = height,
      ) -> None:
        width = _INNER / columns
        for index, panel in enumerate(row):
          left = _MARGIN + index * width + 0.35
          size = (width - 0.55, height)
          axes = _axes(figure, left, top - 0.25, size)
          before = row[index - 1] if index else None
          named = before is None or list(before.curves) != list(panel.curves)
          draw_panel(axes, panel, events, last, size=8.5, named=named)

      page.add(height + 0.55, draw)


def draw(
  lines: Sequence[Mapping[str, Any]],
  *,
  evaluation: Any = None,
  examples: Mapping[str, Any] | None = None,
  title: str = "",
  note: str = "",
) -> Figure:
  """Draws the report.

  Args:
    lines: of `metrics.jsonl`.
    evaluation: parsed `evaluation.json`, if there is one.
    examples: parsed `examples.json`, if there is one.
    title: over everything.
    note: below the title.

  Returns:
    The figure.

  Raises:
    ValueError: if there is nothing to draw.
  """
  panels = collect(lines)
  if not panels and not headlines.bars(evaluation or {}):
    raise ValueError(
      "nothing to draw: no values in metrics.jsonl and no evaluation.json."
    )
  page = _Page()
  _add_title(page, title or "run", note)
  _add_numbers(page, evaluation or {})
  _add_examples(page, examples or {})
  _add_curves(page, panels, *_events(lines))
  return page.figure()


def _events(lines: Sequence[Mapping[str, Any]]) -> tuple[list[float], float]:
  """Steps of events, and the last step."""
  events = [float(x["step"]) for x in lines if x.get("event")]
  return events, max((float(x["step"]) for x in lines), default=1.0)


def draw_curves(
  lines: Sequence[Mapping[str, Any]], *, title: str = ""
) -> Figure:
  """Draws every curve of a run, each panel on axes of its own.

  Args:
    lines: of `metrics.jsonl`.
    title: over everything.

  Returns:
    The figure.

  Raises:
    ValueError: if there is nothing to draw.
  """
  from matplotlib.figure import Figure

  panels = collect(lines)
  if not panels:
    raise ValueError("nothing to draw: no values in metrics.jsonl.")
  rows = math.ceil(len(panels) / _COLUMNS)
  figure = Figure(figsize=(13, 0.7 + 2.7 * rows), layout="constrained")
  for index, panel in enumerate(panels):
    axes = figure.add_subplot(rows, _COLUMNS, index + 1)
    draw_panel(axes, panel, *_events(lines))
  figure.suptitle(
    title or "run", x=0.01, ha="left", fontsize=13, color=INK, weight="bold"
  )
  return figure


def _note(lines: Sequence[Mapping[str, Any]], evaluation: Any) -> str:
  """Length of the run, its events, and what it was measured on."""
  parts = []
  timed = [x for x in lines if "time" in x]
  if timed:
    minutes = (timed[-1]["time"] - timed[0]["time"]) / 60
    steps = int(max(x["step"] for x in timed)) + 1
    parts.append(f"{steps} steps in {minutes:.1f} min")
  count = sum(1 for x in lines if x.get("event"))
  if count:
    parts.append(f"{count} event{'s' * (count > 1)} (dotted red)")
  rows = (evaluation or {}).get("results") or ()
  if rows and rows[0].get("source"):
    split = f" (split {rows[0]['split']})" if rows[0].get("split") else ""
    parts.append(f"evaluated on source {rows[0]['source']!r}{split}")
  return "   ".join(parts)


def _parsed(path: Any) -> Any:
  """A JSON file; None: there is none."""
  with contextlib.suppress(FileNotFoundError):
    return json.loads(files.read_text(path))
  return None


def read_and_draw(workdir: epath.PathLike) -> Figure:
  """Draws the report of a workdir.

  Args:
    workdir: folder of a run.

  Raises:
    ValueError: if the folder has neither metrics nor an evaluation.
  """
  folder = epath.Path(workdir)
  lines = metric_log.read_metrics(folder)
  evaluation = _parsed(folder / EVALUATION_FILE)
  return draw(
    lines,
    evaluation=evaluation,
    examples=_parsed(folder / EXAMPLES_FILE),
    title=folder.name,
    note=_note(lines, evaluation),
  )


def to_png(figure: Figure, *, dpi: int = _DPI) -> bytes:
  """A figure as a PNG of few colours, a third of the size of a full one.

  Args:
    figure: to draw.
    dpi: pixels of an inch.
  """
  from PIL import Image

  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=dpi)
  with Image.open(buffer) as image:
    few = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
  out = io.BytesIO()
  few.save(out, "PNG", optimize=True)
  return out.getvalue()


def write_report(
  workdir: epath.PathLike, out: epath.PathLike | None = None
) -> Any:
  """Draws `<workdir>/report.png`.

  Args:
    workdir: folder of a run.
    out: file to write instead.

  Returns:
    Path (`etils.epath`) of the picture.

  Raises:
    ValueError: if the folder has neither metrics nor an evaluation.
  """
  path = epath.Path(workdir) / REPORT_FILE if out is None else epath.Path(out)
  files.write_bytes(path, to_png(read_and_draw(workdir)))
  return path
