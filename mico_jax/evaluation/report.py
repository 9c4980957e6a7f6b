"""Results as a table, JSON and a bar chart.

The evaluator of a result says how it is shown. Nothing here depends on the time
or the machine: evaluating the same checkpoint again writes the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from mico_jax import files
from mico_jax.evaluation.evaluator import SHARE, Measure
from mico_jax.evaluation.evaluators import find_measure
from mico_jax.evaluation.examples import EXAMPLES_FILE, Examples
from mico_jax.evaluation.results import Result
from mico_jax.json_text import dumps

if TYPE_CHECKING:
  from matplotlib.axes import Axes


def _measure(result: Result) -> Measure:
  """The measure of a result; a plain number if its name is unknown."""
  return find_measure(result.name) or Measure(unit="")


def to_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
  """All results as plain values, and how their evaluators show them."""
  rows = []
  for result in results:
    measure = _measure(result)
    shown = {"unit": measure.unit, "headline": measure.headline}
    rows.append(result.as_dict() | shown)
  return rows


def to_json(results: Sequence[Result]) -> str:
  """All results as JSON text."""
  return dumps({"results": to_rows(results)}, indent=2, sort_keys=True) + "\n"


def table(results: Sequence[Result]) -> str:
  """The results as an aligned text table."""
  if not results:
    return "(no results)"
  header = ("name", "value", "95% interval", "ceiling", "chance", "n/N")
  rows = [header]
  optional = lambda x: "" if x is None else f"{x:.3f}"
  for r in results:
    interval = ""
    if r.interval is not None:
      interval = f"{r.interval[0]:.3f} .. {r.interval[1]:.3f}"
    rows.append(
      (
        r.name,
        _measure(r).text(r.value),
        interval,
        optional(r.ceiling),
        optional(r.baseline),
        f"{r.n}/{r.total}",
      )
    )
  used = [i for i in range(len(header)) if any(row[i] for row in rows[1:])]
  widths = {i: max(len(row[i]) for row in rows) for i in used}
  lines = []
  for row in rows:
    cells = [
      row[i].ljust(widths[i]) if i == 0 else row[i].rjust(widths[i])
      for i in used
    ]
    lines.append("  ".join(cells).rstrip())
  lines.insert(1, "-" * max(map(len, lines)))
  first = results[0]
  lines.append(
    f"source {first.source} ({first.split})  preprocessing "
    f"{first.preprocessing_sha256[:12]}"
  )
  return "\n".join(lines)


def _by_axis(results: Sequence[Result]) -> dict[str, list[Result]]:
  """Results that share an axis: shares and plain numbers, and each unit."""
  groups: dict[str, list[Result]] = {}
  for result in results:
    unit = _measure(result).unit
    groups.setdefault("" if unit == SHARE else unit, []).append(result)
  return groups


def _draw_bars(axes: Axes, results: Sequence[Result], unit: str) -> None:
  """Bars from top to bottom with interval, ceiling and chance."""
  places = np.arange(len(results))[::-1]
  values = np.asarray([r.value for r in results], np.float64)
  axes.barh(places, values, color="#4c72b0", height=0.7)
  for place, r in zip(places, results, strict=True):
    if r.interval is not None:
      axes.plot(r.interval, (place, place), color="black", linewidth=1.2)
    if r.ceiling is not None:
      axes.plot((r.ceiling,) * 2, (place - 0.4, place + 0.4), color="#c44e52")
    if r.baseline is not None:
      axes.plot(
        (r.baseline,) * 2, (place - 0.4, place + 0.4), color="0.5", ls=":"
      )
    axes.annotate(
      f" {_measure(r).text(r.value)}",
      (max(r.value, r.interval[1] if r.interval else 0.0), place),
      va="center",
      fontsize=7,
    )
  axes.set_yticks(places, [r.name for r in results], fontsize=8)
  low = min(
    values.min(initial=0.0),
    *(r.interval[0] for r in results if r.interval),
    0.0,
  )
  axes.set_xlim(1.1 * low, 1.1 * max(1.0, float(values.max(initial=0.0))))
  axes.margins(y=0.01)
  axes.set_xlabel(
    f"{unit or 'value'} (line: 95%; red: ceiling; dotted: chance)"
  )


def bar_chart(results: Sequence[Result], path: str, *, title: str = "") -> None:
  """Writes the results as a bar chart (PNG) with intervals and ceilings.

  Results of each unit have axes of their own.

  Args:
    results: drawn from top to bottom, one or more.
    path: of the file.
    title: above the chart.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  groups = _by_axis(results)
  height = 1.2 * len(groups) + 0.3 * len(results)
  figure = Figure(figsize=(8, height), layout="constrained")
  FigureCanvasAgg(figure)
  rows = figure.subplots(
    len(groups),
    squeeze=False,
    height_ratios=[1.2 + 0.3 * len(group) for group in groups.values()],
  )
  for (axes,), (unit, group) in zip(rows, groups.items(), strict=True):
    _draw_bars(axes, group, unit)
  rows[0, 0].set_title(title, fontsize=9)
  buffer = io.BytesIO()
  # No software or date entry: the same results give the same file.
  figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
  files.write_bytes(path, buffer.getvalue())


def write(
  results: Sequence[Result],
  folder: str,
  *,
  name: str = "evaluation",
  examples: Examples | None = None,
) -> list[str]:
  """Writes `<name>.json`, `<name>.txt` and a chart, `<name>.png`.

  The chart shows the headlines.

  Args:
    results: of an evaluation.
    folder: made if missing.
    name: of the files.
    examples: of the evaluation, written as `examples.json`; None: none.

  Returns:
    The paths written.
  """
  out = epath.Path(folder)
  files.make_folder(out)
  files.write_text(out / f"{name}.json", to_json(results))
  files.write_text(out / f"{name}.txt", table(results) + "\n")
  paths = [str(out / f"{name}.json"), str(out / f"{name}.txt")]
  shown = [r for r in results if _measure(r).headline]
  if shown:
    bar_chart(shown, str(out / f"{name}.png"), title=name)
    paths.append(str(out / f"{name}.png"))
  if examples is not None and examples.found:
    contents = dumps(examples.contents, sort_keys=True) + "\n"
    files.write_text(out / EXAMPLES_FILE, contents)
    paths.append(str(out / EXAMPLES_FILE))
  return paths
