"""Results that carry their protocol, as a table, JSON and a bar chart.

A number without its split, prompts, preprocessing and coverage cannot be
compared, so every result holds them. Nothing here depends on the time or the
machine: evaluating the same checkpoint again writes the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from mico_jax.evaluation import metrics
from mico_jax.json_text import dumps

_DIGITS = 8  # of numbers in the JSON file


@dataclasses.dataclass(frozen=True)
class Result:
  """One measured number with what is needed to compare it.

  Attributes:
    name: what was measured, e.g. "retrieval/t->va/R@1".
    value: the number; rates in [0, 1].
    interval: 95% bootstrap interval over the items; None: not a mean.
    n: items scored (queries, captions, questions).
    total: items the protocol asks for; n < total means some were unusable.
    gallery: items chosen from; 0: does not apply.
    source: name of the data source.
    split: of the source.
    prompt_sha256: of all texts shown to the model.
    preprocessing_sha256: of modes, sizes and tokenizer.
    ceiling: best value that any model could expect; None: unknown.
    baseline: value of guessing; None: unknown.
    command: that measured it.
    values: per-item values, for paired comparisons; not written to JSON.
  """

  name: str
  value: float
  interval: tuple[float, float] | None
  n: int
  total: int
  gallery: int = 0
  source: str = ""
  split: str = ""
  prompt_sha256: str = ""
  preprocessing_sha256: str = ""
  ceiling: float | None = None
  baseline: float | None = None
  command: str = ""
  values: Float[np.ndarray, " N"] | None = dataclasses.field(
    default=None, repr=False, compare=False
  )

  def as_dict(self) -> dict[str, Any]:
    """Plain values, rounded, without the per-item ones."""
    out = {
      f.name: getattr(self, f.name)
      for f in dataclasses.fields(self)
      if f.name != "values"
    }
    out["coverage"] = self.n / self.total if self.total else 0.0
    return {key: _rounded(value) for key, value in out.items()}


def _rounded(value: Any) -> Any:
  if isinstance(value, tuple):
    return [_rounded(v) for v in value]
  if isinstance(value, (float, np.floating)):
    # JSON has no NaN.
    return round(float(value), _DIGITS) if np.isfinite(value) else None
  return value


@dataclasses.dataclass(frozen=True)
class Protocol:
  """What all results of an evaluation share; makes `Result`s.

  Attributes:
    source: name of the data source.
    split: of the source.
    preprocessing_sha256: of modes, sizes and tokenizer.
    command: that measures.
    bootstrap: resamples of the intervals; 0: none.
    seed: of the resampling.
  """

  source: str = ""
  split: str = ""
  preprocessing_sha256: str = ""
  command: str = ""
  bootstrap: int = 1000
  seed: int = 0

  def result(
    self,
    name: str,
    values: Float[np.ndarray, " N"],
    *,
    total: int,
    prompts: Sequence[str] = (),
    gallery: int = 0,
    ceiling: float | None = None,
    baseline: float | None = None,
  ) -> Result:
    """The mean of per-item values with its interval.

    Raises:
      ValueError: for no values.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
      raise ValueError(f"{name}: no item could be scored (0 of {total}).")
    interval = None
    if self.bootstrap:
      interval = tuple(
        metrics.bootstrap_interval(values, num=self.bootstrap, seed=self.seed)
      )
    return Result(
      name=name,
      value=float(values.mean()),
      interval=interval,
      n=len(values),
      total=total,
      gallery=gallery,
      source=self.source,
      split=self.split,
      prompt_sha256=hash_texts(prompts),
      preprocessing_sha256=self.preprocessing_sha256,
      ceiling=ceiling,
      baseline=baseline,
      command=self.command,
      values=values,
    )


def hash_texts(texts: Sequence[str]) -> str:
  """SHA-256 of texts in their order; "" for none."""
  if not texts:
    return ""
  return hash_json(list(texts))


def hash_json(value: Any) -> str:
  """SHA-256 of a plain value written as JSON with sorted keys."""
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def to_json(results: Sequence[Result]) -> str:
  """All results as JSON text."""
  rows = [result.as_dict() for result in results]
  return dumps({"results": rows}, indent=2, sort_keys=True) + "\n"


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
        f"{r.value:.3f}",
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


def bar_chart(results: Sequence[Result], path: str, *, title: str = "") -> None:
  """Writes the results as a bar chart (PNG) with intervals and ceilings.

  Args:
    results: drawn from top to bottom.
    path: of the file.
    title: above the chart.

  Raises:
    ImportError: if matplotlib is not installed.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  n = len(results)
  figure = Figure(figsize=(8, 1.2 + 0.3 * n), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  places = np.arange(n)[::-1]
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
      f" {r.value:.3f}",
      (max(r.value, r.interval[1] if r.interval else 0.0), place),
      va="center",
      fontsize=7,
    )
  axes.set_yticks(places, [r.name for r in results], fontsize=8)
  axes.set_xlim(0, 1.1 * max(1.0, float(values.max(initial=0.0))))
  axes.margins(y=0.01)
  axes.set_xlabel("value (line: 95%; red: ceiling; dotted: chance)")
  axes.set_title(title, fontsize=9)
  with epath.Path(path).open("wb") as file:
    # No software or date entry: the same results give the same file.
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})


def write(
  results: Sequence[Result], folder: str, *, name: str = "evaluation"
) -> list[str]:
  """Writes `<name>.json`, `<name>.txt` and, with matplotlib, `<name>.png`.

  The chart leaves out R@5 and R@10.

  Returns:
    The paths written.
  """
  out = epath.Path(folder)
  out.mkdir(parents=True, exist_ok=True)
  (out / f"{name}.json").write_text(to_json(results))
  (out / f"{name}.txt").write_text(table(results) + "\n")
  paths = [str(out / f"{name}.json"), str(out / f"{name}.txt")]
  if results:
    try:
      shown = [r for r in results if not r.name.endswith(("R@5", "R@10"))]
      bar_chart(shown, str(out / f"{name}.png"), title=name)
    except ImportError:
      return paths  # the chart is an extra
    paths.append(str(out / f"{name}.png"))
  return paths
