"""The picture of a run: `<workdir>/report.png`.

On top a few numbers, then all shares of the final evaluation and the facts that
are confused, retrieved items and written texts, and the curves that matter,
from `metrics.jsonl` and, where present, `evaluation.json` and `examples.json`.
`draw_curves` draws every curve there is (`mico_jax.run.monitor.panels`).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from mico_jax import files
from mico_jax.evaluation.examples import EXAMPLES_FILE
from mico_jax.run.monitor import example_grid, headlines, metric_log
from mico_jax.run.monitor.curves import GREY, INK, draw_panel
from mico_jax.run.monitor.page import MARGIN, WIDTH, Page, axes_at
from mico_jax.run.monitor.panels import Panel, collect, overview

if TYPE_CHECKING:
  from matplotlib.figure import Figure

REPORT_FILE = "report.png"
EVALUATION_FILE = "evaluation.json"

_INNER = WIDTH - 2 * MARGIN
_COLUMNS = 3  # of `draw_curves`
_DPI = 130
_COLOURS = 256  # of the file


def _add_title(page: Page, title: str, note: str) -> None:
  def draw(figure: Figure, top: float) -> None:
    canvas = example_grid.Canvas(
      axes_at(figure, MARGIN, top, (_INNER, 0.45)), _INNER, 0.45
    )
    canvas.text(0, 0, title, fontsize=14, weight="bold")
    canvas.text(0, 0.28, note, fontsize=8.5, color=GREY)

  page.add(0.4, draw)


def _add_numbers(page: Page, evaluation: Mapping[str, Any]) -> None:
  """Numbers on top, then bars of all shares beside the facts confused."""
  top_numbers = headlines.cards(evaluation)
  if top_numbers:
    page.add(
      1.15,
      lambda figure, top: headlines.draw_cards(
        axes_at(figure, MARGIN, top, (_INNER, 1.1)), top_numbers
      ),
    )
  shown = headlines.bars(evaluation)
  found = headlines.facts(evaluation)
  if not shown and not found:
    return
  rows = max(len(shown) * 0.18, 0.3 * len(next(iter(found.values()), ())), 0.4)

  def draw(figure: Figure, top: float) -> None:
    left = MARGIN + 3.0
    right = 3.4 if found else WIDTH - left - 0.7
    if shown:
      headlines.draw_bars(
        axes_at(figure, left, top - 0.25, (right - 0.9, rows)), shown
      )
    if found:
      left = WIDTH - 2.85 if shown else left
      below = 0.25 + 0.14 * len(found)
      size = (WIDTH - left - 0.2, rows - 0.14 * len(found))
      headlines.draw_facts(axes_at(figure, left, top - below, size), found)

  page.add(rows + 0.6, draw)


def _add_examples(page: Page, contents: Mapping[str, Any]) -> None:
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
      chosen: Any = chosen,
      height: float = height,
      paint: Any = paint,
    ) -> None:
      axes = axes_at(figure, MARGIN, top, (_INNER, height))
      paint(example_grid.Canvas(axes, _INNER, height), chosen, items)

    page.add(height, draw)


def _add_curves(
  page: Page, panels: Sequence[Panel], events: Sequence[float], last: float
) -> None:
  large, small = overview(panels)
  wide = 4 if len(large) > 3 else max(len(large), 2)
  for group, columns, height in ((large, wide, 1.75), (small, 5, 0.9)):
    for start in range(0, len(group), columns):
      row = group[start : start + columns]

      def draw(
        figure: Figure,
        top: float,
        row: Sequence[Panel] = row,
        columns: int = columns,
        height: float = height,
      ) -> None:
        width = _INNER / columns
        for index, panel in enumerate(row):
          left = MARGIN + index * width + 0.35
          size = (width - 0.55, height)
          axes = axes_at(figure, left, top - 0.25, size)
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
  page = Page()
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


def pictures(workdir: epath.PathLike) -> dict[str, UInt8[np.ndarray, "Y X 3"]]:
  """The parts of a report that TensorBoard and W&B show.

  Args:
    workdir: folder of a run that was evaluated.

  Returns:
    Pictures by name; none of a run without an evaluation.
  """
  folder = epath.Path(workdir)
  evaluation = _parsed(folder / EVALUATION_FILE) or {}
  contents = _parsed(folder / EXAMPLES_FILE) or {}
  pages = {"final/numbers": Page(), "final/examples": Page()}
  _add_numbers(pages["final/numbers"], evaluation)
  _add_examples(pages["final/examples"], contents)
  return {
    name: _pixels(page.figure()) for name, page in pages.items() if len(page)
  }


def _pixels(figure: Figure, dpi: int = _DPI) -> UInt8[np.ndarray, "Y X 3"]:
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  figure.set_dpi(dpi)
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3]


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

  few = Image.fromarray(_pixels(figure, dpi)).quantize(
    # the method that keeps the hues of thin lines beside those of photos
    _COLOURS,
    method=Image.Quantize.FASTOCTREE,
    dither=Image.Dither.NONE,
  )
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
