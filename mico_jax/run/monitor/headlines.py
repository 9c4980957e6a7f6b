"""Numbers of the final evaluation, as a report shows them.

`evaluation.json` is what `mico_jax.evaluation.report` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mico_jax.evaluation.evaluator import SHARE, Measure
from mico_jax.evaluation.evaluators import EVALUATORS, find_measure
from mico_jax.evaluation.evaluators.hard_galleries import PAIRS_WON
from mico_jax.modalities.wording import result_in_words
from mico_jax.run.monitor.curves import COLORS, GREY, INK, style

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_NAME_WIDTH = 58
_CHANCE, _CEILING = "#888888", "#D55E00"


@dataclass(frozen=True)
class Bar:
  """One number of the final evaluation.

  Attributes:
    name: what was measured.
    value: in [0, 1], unless it is of another unit.
    low: lower end of the 95% interval.
    high: upper end of the 95% interval.
    chance: of guessing.
    ceiling: best possible value.
    gallery: candidates of a query; 0: it has none.
    measure: how it is shown.
  """

  name: str
  value: float
  low: float | None = None
  high: float | None = None
  chance: float | None = None
  ceiling: float | None = None
  gallery: int = 0
  measure: Measure = field(default_factory=Measure)

  @property
  def words(self) -> str:
    """The name with its codes in words."""
    return result_in_words(self.name)


def _bar(row: Mapping[str, Any]) -> Bar | None:
  """A result; None for one without a number or of an unknown evaluator."""
  value, name = row.get("value"), str(row.get("name", ""))
  measure = find_measure(name)
  # One that is not finite stands as a text, or as null.
  if not isinstance(value, int | float) or measure is None:
    return None
  low, high = row.get("interval") or (None, None)
  bounds = (low, high, row.get("baseline"), row.get("ceiling"))
  return Bar(
    *(name, float(value), *bounds, int(row.get("gallery") or 0), measure)
  )


def _known(evaluation: Mapping[str, Any]) -> list[Bar]:
  return [b for b in map(_bar, evaluation.get("results", ())) if b is not None]


def bars(evaluation: Mapping[str, Any], *, limit: int = 28) -> list[Bar]:
  """The shares of an `evaluation.json`.

  Args:
    evaluation: the parsed file.
    limit: most bars returned; with more results, those that are no headline
      are left out first.

  Returns:
    Results whose evaluators say that they are shares, in the file's order.
  """
  rows = [bar for bar in _known(evaluation) if bar.measure.unit == SHARE]
  if len(rows) > limit:
    rows = [bar for bar in rows if bar.measure.headline]
  return rows[:limit]


def _modalities(bar: Bar) -> int:
  """How many modalities a result is of, as its code says."""
  code = (*bar.name.split("/"), "")[1].partition(" ")[0]
  return len(code.replace("->", ""))


def cards(evaluation: Mapping[str, Any], *, limit: int = 4) -> list[Bar]:
  """The numbers on top: one headline of each evaluator.

  The one of most modalities, the first of equals: a rule and no taste.

  Args:
    evaluation: the parsed file.
    limit: most numbers returned.
  """
  best: dict[str, Bar] = {}
  for bar in _known(evaluation):
    title = bar.name.partition("/")[0]
    if bar.measure.headline and (
      title not in best or _modalities(bar) > _modalities(best[title])
    ):
      best[title] = bar
  return list(best.values())[:limit]


def facts(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Bar]]:
  """Pairs won of each fact that scenes differ in.

  Args:
    evaluation: the parsed file.

  Returns:
    {what was compared: {fact: its share}}, in the order of similarities only,
    the re-ranked ones left out.
  """
  found: dict[str, dict[str, Bar]] = {}
  for bar in _known(evaluation):
    *head, fact, last = bar.name.split("/")
    if last == PAIRS_WON and head and " " not in head[-1]:
      found.setdefault(result_in_words("/".join(head)), {})[fact] = bar
  return found


def _limits(bar: Bar) -> str:
  """Interval, chance and ceiling of a number in one line."""
  parts = []
  if bar.low is not None and bar.high is not None:
    parts.append(f"95%: {bar.low:.3f} .. {bar.high:.3f}")
  if bar.chance is not None:
    parts.append(f"chance {bar.chance:.3f}")
  if bar.ceiling is not None:
    parts.append(f"ceiling {bar.ceiling:.3f}")
  return "   ".join(parts)


def draw_cards(axes: Axes, shown: Sequence[Bar]) -> None:
  """Draws numbers in large figures, side by side.

  Args:
    axes: of the whole width.
    shown: from `cards`.
  """
  axes.set_axis_off()
  axes.set(xlim=(0, len(shown)), ylim=(0, 1))
  for place, bar in enumerate(shown):
    first, *rest = bar.words.split(", ")
    first = _evaluator_of(first)
    last = rest[-1] if rest else ""
    if bar.gallery:
      last += f" of {bar.gallery}"
    put = lambda y, text, x=place, **style: axes.text(
      x, y, text, va="baseline", **style
    )
    put(0.86, f"{first}: {last}", fontsize=9, color=INK, weight="bold")
    put(0.66, _cut(", ".join(rest[:-1]), 34), fontsize=8.5, color=INK)
    value = bar.measure.text(bar.value)
    put(0.24, value, fontsize=22, color=COLORS[0], weight="bold")
    for y, text in zip((0.1, -0.06), _two_lines(_limits(bar)), strict=False):
      put(y, text, fontsize=8, color=GREY)


def _evaluator_of(title: str) -> str:
  """The evaluator of a title in words, if it is the only one."""
  names = [name for name, e in EVALUATORS.items() if e.title == title]
  return names[0].replace("_", " ") if len(names) == 1 else title


def _two_lines(text: str) -> tuple[str, str]:
  first, _, rest = text.partition("   ")
  return first, rest


def _cut(text: str, width: int) -> str:
  return text if len(text) <= width else f"{text[: width - 3]}..."


def draw_bars(axes: Axes, shown: Sequence[Bar]) -> None:
  """Draws shares with their intervals, chances and ceilings.

  Args:
    axes: as wide as the bars; their names stand left of it.
    shown: from `bars`.
  """
  style(axes, "final evaluation")
  axes.grid(False, axis="y")
  places = np.arange(len(shown))[::-1]
  axes.barh(places, [b.value for b in shown], height=0.62, color="#9CC4DF")
  for place, bar in zip(places, shown, strict=True):
    if bar.low is not None and bar.high is not None:
      axes.plot([bar.low, bar.high], [place, place], color=INK, linewidth=1.4)
    for value, color in ((bar.chance, _CHANCE), (bar.ceiling, _CEILING)):
      if value is not None:
        axes.plot(
          [value, value], [place - 0.4, place + 0.4], color=color, linewidth=2
        )
    text = f"{bar.value:.3f}"
    axes.text(1.02, place, text, va="center", fontsize=8, color=INK)
  axes.set_yticks(places, [_cut(b.words, _NAME_WIDTH) for b in shown])
  axes.set_xlim(0, 1)
  axes.set_ylim(-0.7, len(shown) - 0.3)
  notes = ["share"]
  notes += ["black: 95% interval"] * any(b.low is not None for b in shown)
  notes += ["grey: chance"] * any(b.chance is not None for b in shown)
  notes += ["orange: ceiling"] * any(b.ceiling is not None for b in shown)
  axes.set_xlabel("; ".join(notes), fontsize=8, color=GREY)


def draw_facts(
  axes: Axes, found: Mapping[str, Mapping[str, Bar]], *, top: float = 1.0
) -> None:
  """Draws how often each fact is told from another, the most confused on top.

  Args:
    axes: to draw on.
    found: from `facts`.
    top: right end of the axis.
  """
  style(axes, "")
  axes.grid(False, axis="y")
  values: dict[str, list[float]] = {}
  for series in found.values():
    for fact, bar in series.items():
      values.setdefault(fact, []).append(bar.value)
  order = sorted(values, key=lambda fact: -min(values[fact]))
  for index, (name, series) in enumerate(found.items()):
    shift = 0.22 * (len(found) - 1) / 2 - 0.22 * index
    for fact, bar in series.items():
      place = order.index(fact) + shift
      if bar.low is not None and bar.high is not None:
        axes.plot([bar.low, bar.high], [place] * 2, color=COLORS[index])
    axes.plot(
      [bar.value for bar in series.values()],
      [order.index(fact) + shift for fact in series],
      "o",
      color=COLORS[index],
      markersize=4,
      label=name.partition(", ")[2],
    )
  chances = {b.chance for b in _all(found) if b.chance is not None}
  for chance in chances:
    axes.axvline(chance, color=_CHANCE, linewidth=2)
  axes.set_yticks(range(len(order)), order)
  low = min(b.low if b.low is not None else b.value for b in _all(found))
  axes.set_xlim(min(low, *chances, 0.5) - 0.03, top + 0.01)
  axes.set_ylim(-0.6, len(order) - 0.4)
  axes.set_xlabel(
    "pairs won: share; grey: chance",
    fontsize=8,
    color=GREY,
  )
  axes.set_title("which facts it confuses", loc="left", fontsize=10, pad=32)
  axes.legend(
    fontsize=7.5,
    frameon=False,
    loc="lower left",
    bbox_to_anchor=(-0.02, 1.0),
    borderpad=0,
  )


def _all(found: Mapping[str, Mapping[str, Bar]]) -> list[Bar]:
  return [bar for series in found.values() for bar in series.values()]
