"""One self-contained HTML page of several evaluations.

Tables of results side by side with the figures that their protocols name,
curves of the runs, and single queries with pictures, spectrograms and sounds.
The page holds everything and asks no server for anything, which its content
security policy enforces.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from etils import epath

import mico_jax
from mico_jax import files
from mico_jax.config import ConfigError
from mico_jax.evaluation.evaluator import SHARE, Measure
from mico_jax.evaluation.evaluators import find_measure
from mico_jax.evaluation.examples import EXAMPLES_FILE, examples_file
from mico_jax.modalities.wording import in_words
from mico_jax.run.commands.result_examples import example_section
from mico_jax.run.monitor import metric_log, report

PAGE_FILE = "report.html"


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """What one folder of results holds.

  Attributes:
    label: heads its column; differs from all others of the page.
    results: of `evaluation.json`, by what was measured on which data.
    examples: of its file of examples; empty: none.
    metrics: lines of `metrics.jsonl`; empty: no run.
  """

  label: str
  results: Mapping[str, Mapping[str, Any]]
  examples: Mapping[str, Any]
  metrics: Sequence[Mapping[str, Any]]


def read_evaluated(paths: Sequence[str]) -> list[Evaluated]:
  """Reads results.

  Args:
    paths: folders of `evaluate --out` or of runs, or their files of results,
      `evaluation.json` or that of a protocol.

  Raises:
    ConfigError: for a path without results, or a file that holds none.
  """
  labels = _labels([_labelled(path) for path in paths])
  return [
    _read_one(path, label) for path, label in zip(paths, labels, strict=True)
  ]


def _folder_and_file(path: str) -> tuple[Any, Any]:
  place = epath.Path(path)
  if place.suffix == ".json":
    return place.parent, place
  return place, place / report.EVALUATION_FILE


def _labelled(path: str) -> str:
  """The folder of a run or evaluation, or the file of a protocol."""
  folder, file = _folder_and_file(path)
  own = file.name != report.EVALUATION_FILE
  return str(file).removesuffix(".json") if own else str(folder)


def _labels(places: Sequence[str]) -> list[str]:
  """The shortest ends of paths that tell them apart."""
  parts = [tuple(place.rstrip("/").split("/")) or ("",) for place in places]
  for length in range(1, max(map(len, parts)) + 1):
    ends = ["/".join(part[-length:]) for part in parts]
    if len(set(ends)) == len(ends):
      return ends
  return [f"{'/'.join(part)} ({i + 1})" for i, part in enumerate(parts)]


def _read_one(path: str, label: str) -> Evaluated:
  folder, file = _folder_and_file(path)
  try:
    rows = json.loads(files.read_text(file))["results"]
    results = {_measured(row): row for row in rows}
    for row in rows:
      float(row["value"])  # one that is not finite stands as a text
  except FileNotFoundError:
    there = sorted(
      p.name
      for p in folder.glob("*.json")
      if not p.name.endswith(EXAMPLES_FILE)
    )
    others = f" (it has {', '.join(there[:5])})" if there else ""
    raise ConfigError(
      f"{path}: there is no {file.name}{others}; expected a folder that "
      "`mico-jax evaluate --out DIR` or a run wrote, or the file of a protocol."
    ) from None
  except (ValueError, KeyError, TypeError) as error:
    raise ConfigError(
      f"{file}: is no file of results ({type(error).__name__}: {error}); "
      "`mico-jax evaluate --out DIR` writes one."
    ) from None
  examples: dict[str, Any] = {}
  shown = folder / EXAMPLES_FILE
  if file.name != report.EVALUATION_FILE:  # of a protocol
    shown = folder / examples_file(file.stem)
  if shown.exists():
    try:
      examples = json.loads(files.read_text(shown))
    except ValueError as error:
      raise ConfigError(f"{shown}: {error}") from None
  metrics: list[dict[str, Any]] = []
  if (folder / metric_log.METRICS_FILE).exists():
    metrics = metric_log.read_metrics(folder)
  return Evaluated(label, results, examples, metrics)


def _measured(row: Mapping[str, Any]) -> str:
  """What was measured: equal only if the numbers can be compared.

  The metric of a protocol says it in full; the name of any other result says it
  together with source and split.
  """
  data = " ".join(str(row[k]) for k in ("source", "split") if row.get(k))
  return str(row.get("metric") or f"{row['name']} @ {data}")


def _measure_of(row: Mapping[str, Any]) -> Measure:
  return find_measure(str(row["name"])) or Measure(str(row.get("unit", "")))


# ------------------------------------------------------------------- the page
_STYLE = """
:root{--ink:#1d2733;--faint:#66727f;--line:#dde3e9;--back:#fff;--card:#f6f8fa;
--bar:#0072b2;--good:#1a7f4b;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ee;--faint:#97a3af;
--line:#323b45;--back:#14191f;--card:#1d242c;--bar:#56b4e9;--good:#5fc98f;
--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:75rem;padding:1rem 1.25rem 4rem;color:var(--ink);
background:var(--back);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:1.25rem 0 .4rem}
.faint,small{color:var(--faint)}small{display:block;font-size:.8em}
.wide{overflow-x:auto}
table{border-collapse:collapse;min-width:30rem}
th,td{padding:.3rem .75rem .3rem 0;border-bottom:1px solid var(--line);
text-align:left;vertical-align:top;font-variant-numeric:tabular-nums}
th{font-weight:600}td.best b{color:var(--good)}
.bar{position:relative;height:5px;width:9rem;background:var(--line);
border-radius:3px;margin-top:3px}
.bar i{position:absolute;inset:0 auto 0 0;background:var(--bar);
border-radius:3px}
.bar u{position:absolute;top:-2px;bottom:-2px;border-left:2px solid var(--ink);
border-right:2px solid var(--ink)}
details{margin:.5rem 0}summary{cursor:pointer;padding:.2rem 0}
.example{background:var(--card);border-radius:8px;padding:.75rem;margin:.6rem 0}
.query{font-weight:600}.row{display:flex;flex-wrap:wrap;gap:.6rem}
.answer{border:1px solid var(--line);border-left:4px solid var(--line);
border-radius:6px;padding:.4rem .5rem;background:var(--back);max-width:100%}
.answer.right{border-left-color:var(--good)}
.answer.wrong{border-left-color:var(--bad)}
.tiles{display:flex;flex-wrap:wrap;gap:3px}
figure{margin:0}figcaption{font-size:.7rem;color:var(--faint);
max-width:96px;overflow-wrap:anywhere}
.tiles img{width:96px;height:96px;object-fit:contain;background:#0002;
image-rendering:pixelated;display:block}
audio{width:200px;height:32px;display:block;margin-top:4px}
.text{max-width:22rem;overflow-wrap:anywhere}
.mark{font-size:.8rem;font-weight:600}.right .mark{color:var(--good)}
.wrong .mark{color:var(--bad)}
img.curves{max-width:100%;background:#fff;border-radius:8px}
code{overflow-wrap:anywhere}
"""
_POLICY = (
  "default-src 'none'; img-src data:; media-src data:; "
  "style-src 'unsafe-inline'"
)


def make_page(evaluated: Sequence[Evaluated]) -> str:
  """The page as HTML.

  Args:
    evaluated: one or more, in the order of the columns.
  """
  title = "Results of " + ", ".join(one.label for one in evaluated)
  parts = [
    f"<h1>{escape(title)}</h1>",
    f'<p class="faint">mico_jax {escape(mico_jax.__version__)}</p>',
    _results_section(evaluated),
    *(x for one in evaluated for x in example_section(one.label, one.examples)),
    *_curve_sections(evaluated),
    _protocol_section(evaluated),
  ]
  return "\n".join(
    [
      "<!doctype html>",
      '<html lang="en"><head><meta charset="utf-8">',
      f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
      '<meta name="viewport" content="width=device-width,initial-scale=1">',
      f"<title>{escape(title)}</title>",
      f"<style>{_STYLE}</style></head><body>",
      *parts,
      "</body></html>\n",
    ]
  )


def write_page(paths: Sequence[str], out: str) -> str:
  """Writes the page of several results; returns its path.

  Args:
    paths: as `read_evaluated` takes them.
    out: path of the HTML file.

  Raises:
    ConfigError: as `read_evaluated`.
  """
  page = make_page(read_evaluated(paths))
  place = epath.Path(out)
  files.make_folder(place.parent)
  files.write_text(place, page)
  return str(place)


# -------------------------------------------------------------------- results
def _results_section(evaluated: Sequence[Evaluated]) -> str:
  rows = {k: row for one in evaluated for k, row in one.results.items()}
  main = [key for key, row in rows.items() if _measure_of(row).headline]
  rest = [key for key, row in rows.items() if not _measure_of(row).headline]
  out = ["<h2>Results</h2>", _results_table(evaluated, main)]
  if rest:
    more = f"{len(rest)} more results"
    out.append(
      f"<details><summary>{more}</summary>{_results_table(evaluated, rest)}"
      "</details>"
    )
  out.append(
    '<p class="faint">Bars: value of a share, with its 95% interval as a '
    "bracket. n/N: items scored of those that the protocol asks for. Green: "
    "best of a row, its interval apart from all others.</p>"
  )
  return "\n".join(out)


def _results_table(evaluated: Sequence[Evaluated], keys: Sequence[str]) -> str:
  head = ["measured", *(one.label for one in evaluated), "chance", "ceiling"]
  rows = []
  for key in keys:
    found = [one.results.get(key) for one in evaluated]
    there = next(x for x in found if x is not None)
    best = _clear_best(found)
    row = [_first_cell(there)]
    row += [_cell(x, x is not None and x is best) for x in found]
    for bound in ("baseline", "ceiling"):
      value = there.get(bound)
      row.append(f"<td>{'' if value is None else f'{value:.3f}'}</td>")
    rows.append([*row, _figures(there)])
  if any(row[-1] != "<td></td>" for row in rows):
    head.append("published")
  else:
    rows = [row[:-1] for row in rows]
  heads = "".join(f"<th>{escape(text)}</th>" for text in head)
  body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
  return f'<div class="wide"><table><tr>{heads}</tr>{body}</table></div>'


def _first_cell(row: Mapping[str, Any]) -> str:
  """What was measured, with letters in words, and on which data."""
  name = str(row["name"])
  code = name.partition("/")[2].partition("/")[0].partition(" ")[0]
  words = [in_words(part) for part in code.split("->")]
  notes = [" &rarr; ".join(words)] if all(words) else []
  if row.get("metric"):
    notes.append(escape(name))
  data = " ".join(str(row[k]) for k in ("source", "split") if row.get(k))
  notes.append(escape(data))
  small = "".join(f"<small>{note}</small>" for note in notes if note)
  return f"<td>{escape(str(row.get('metric') or name))}{small}</td>"


def _cell(row: Mapping[str, Any] | None, best: bool) -> str:
  if row is None:
    return '<td class="faint">not measured</td>'
  value, interval = row.get("value"), row.get("interval")
  measure = _measure_of(row)
  out = [f"<b>{'NaN' if value is None else escape(measure.text(value))}</b>"]
  if interval:
    low, high = (float("nan") if x is None else x for x in interval)
    out.append(f"<small>{low:.3f} .. {high:.3f}</small>")
  n, total = row.get("n", 0), row.get("total", 0)
  covered = f"{n}/{total}"
  if n != total:
    share = n / total if total else 0.0
    covered += f", coverage {100 * share:.1f}%"
  out.append(f"<small>n/N {covered}</small>")
  if measure.unit == SHARE and value is not None:
    out.append(_bar(value, interval))
  kind = ' class="best"' if best else ""
  return f"<td{kind}>{''.join(out)}</td>"


def _bar(value: float, interval: Sequence[float] | None) -> str:
  """A bar of a share with the bracket of its interval."""
  percent = lambda x: f"{100 * min(max(x, 0.0), 1.0):.1f}%"
  bracket = ""
  if interval and None not in interval:
    low, high = interval
    bracket = f'<u style="left:{percent(low)};width:{percent(high - low)}"></u>'
  return (
    f'<div class="bar"><i style="width:{percent(value)}"></i>{bracket}</div>'
  )


def _clear_best(
  found: Sequence[Mapping[str, Any] | None],
) -> Mapping[str, Any] | None:
  """The result whose interval lies apart from all others, on the good side.

  None where texts, samples or galleries differ, which is another task.
  """
  there = [x for x in found if x is not None]
  rows = [x for x in there if x.get("interval") and x["value"] is not None]
  what = ("prompt_sha256", "samples_sha256", "gallery")
  tasks = {tuple(x.get(key) for key in what) for x in there}
  if len(rows) < 2 or len(tasks) > 1:
    return None
  sign = -1.0 if _measure_of(rows[0]).lower_is_better else 1.0
  best = max(rows, key=lambda x: sign * x["value"])
  ends = lambda x: sorted(sign * end for end in x["interval"])
  apart = all(
    ends(other)[1] < ends(best)[0] for other in rows if other is not best
  )
  return best if apart else None


def _figures(row: Mapping[str, Any]) -> str:
  """Published figures that the protocol of a result names."""
  figures = [
    f"{figure['value']:.3f} {escape(str(figure.get('model', '')))}"
    f"<small>{escape(str(figure.get('setting', '')))}, "
    f"{escape(str(figure.get('source', '')))}</small>"
    for figure in row.get("figures") or ()
  ]
  return f"<td>{''.join(figures)}</td>"


# --------------------------------------------------------- curves and protocol
def _curve_sections(evaluated: Sequence[Evaluated]) -> Iterable[str]:
  for one in evaluated:
    if not one.metrics:
      continue
    figure = report.draw_curves(one.metrics, title=one.label)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    yield (
      f"<details><summary><b>Curves: {escape(one.label)}</b></summary>"
      f'<img class="curves" alt="curves of the run {escape(one.label)}" '
      f'src="data:image/png;base64,{data}"></details>'
    )


_PROTOCOL = {
  "source": "source",
  "split": "split",
  "preprocessing_sha256": "preprocessing",
  "samples_sha256": "samples",
  "checkpoint_sha256": "checkpoint",
  "version": "mico_jax",
  "command": "command",
}


def _protocol_section(evaluated: Sequence[Evaluated]) -> str:
  """How to measure the same again."""
  rows = []
  for one in evaluated:
    seen = dict.fromkeys(
      tuple(str(row.get(key, "")) for key in _PROTOCOL)
      for row in one.results.values()
    )
    for values in seen:
      cells = "".join(
        f"<td><code>{escape(value[:12] if 'sha' in key else value)}</code></td>"
        for key, value in zip(_PROTOCOL, values, strict=True)
      )
      rows.append(f"<tr><td>{escape(one.label)}</td>{cells}</tr>")
  heads = "".join(f"<th>{name}</th>" for name in ("", *_PROTOCOL.values()))
  return (
    '<h2>How it was measured</h2><div class="wide"><table>'
    f"<tr>{heads}</tr>{''.join(rows)}</table></div>"
  )
