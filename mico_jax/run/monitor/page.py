"""A figure made of parts from top to bottom, measured in inches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

WIDTH, MARGIN = 10.0, 0.2  # of a page
_GAP = 0.25  # between its parts


class Page:
  """Parts of a figure from top to bottom, placed in inches.

  Placed by hand, as the layout engines of matplotlib take seconds for as many
  axes and texts.
  """

  def __init__(self) -> None:
    """Has no part yet."""
    self._parts: list[tuple[float, Callable[[Figure, float], None]]] = []

  def __len__(self) -> int:
    """Its parts."""
    return len(self._parts)

  def add(self, height: float, draw: Callable[[Figure, float], None]) -> None:
    """Adds a part; `draw` gets the figure and where its top is."""
    self._parts.append((height, draw))

  def figure(self) -> Figure:
    """Draws the parts."""
    from matplotlib.figure import Figure

    total = 2 * MARGIN + sum(height + _GAP for height, _ in self._parts)
    figure = Figure(figsize=(WIDTH, total))
    top = total - MARGIN
    for height, draw in self._parts:
      draw(figure, top)
      top -= height + _GAP
    return figure


def axes_at(
  figure: Figure, left: float, top: float, size: tuple[float, float]
) -> Axes:
  """Axes on a figure, in inches.

  Args:
    figure: to draw on.
    left: of the axes.
    top: above the lower edge of the figure.
    size: width and height.
  """
  width, height = figure.get_size_inches()
  box = (
    left / width,
    (top - size[1]) / height,
    size[0] / width,
    size[1] / height,
  )
  return figure.add_axes(box)
