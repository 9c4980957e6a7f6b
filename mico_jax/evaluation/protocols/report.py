"""Results of a protocol: named in full, with what the copy lacked."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from etils import epath

from mico_jax import files
from mico_jax.evaluation import report
from mico_jax.evaluation.evaluator import SHARE
from mico_jax.evaluation.evaluators import find_measure
from mico_jax.evaluation.examples import Examples, examples_file
from mico_jax.evaluation.protocols.schema import BenchmarkProtocol, Figure
from mico_jax.evaluation.protocols.user_copy import Facts
from mico_jax.evaluation.results import Result
from mico_jax.json_text import dumps

CHANGED = (
  "_changed"  # behind a metric that was not measured as the protocol says
)
PAPER = "MiCo"  # model whose figure stands beside a result
RULE = (
  "The gallery holds the samples that are there; a text whose sample is "
  "missing is no query. n/N counts both. `missing wrong` is value * n / N: "
  "what is left if every missing one counts as wrong."
)


@dataclasses.dataclass(frozen=True)
class ProtocolReport:
  """What was measured.

  Attributes:
    name: of the protocol.
    protocol: loaded.
    protocol_sha256: of its file.
    facts: of the user's copy.
    results: by the evaluators.
    rerank: candidates ordered anew.
    changes: in what the measurement is not that of the protocol.
    present: modality -> samples in which it could be read.
    command: command line.
    checkpoint: its fingerprint.
  """

  name: str
  protocol: BenchmarkProtocol
  protocol_sha256: str
  facts: Facts
  results: Sequence[Result]
  rerank: int
  changes: tuple[str, ...]
  present: dict[str, int]
  command: str = ""
  checkpoint: str = ""

  def named(self) -> list[tuple[str, Result]]:
    """(metric, result) of each; those without a full name keep their own."""
    names = self.protocol.named(rerank=self.rerank)
    suffix = CHANGED if self.changes else ""
    return [
      (names[r.name] + suffix if r.name in names else r.name, r)
      for r in self.results
    ]


def to_json(found: ProtocolReport) -> str:
  """The report as JSON text; the same run gives the same bytes."""
  rows = []
  for (metric, result), row in zip(
    found.named(), report.to_rows(found.results), strict=True
  ):
    plain = metric.removesuffix(CHANGED)
    rows.append(
      {
        **row,
        "metric": metric,
        "missing_wrong": _missing_wrong(result),
        "figures": [
          dataclasses.asdict(f)
          for f in found.protocol.figures
          if f.metric == plain
        ],
      }
    )
  facts = found.facts
  return (
    dumps(
      {
        "protocol": {
          "name": found.name,
          "title": found.protocol.title,
          "sha256": found.protocol_sha256,
          "metric": found.protocol.metric,
          "changes": found.changes,
          "note": found.protocol.note,
        },
        "split": {
          "name": found.protocol.split.name,
          "samples": facts.count,
          "expected": found.protocol.split.count,
          "questions": facts.questions,
          "sha256": facts.sha256,
          "published_sha256": found.protocol.split.sha256,
          "ids": found.protocol.split.ids,
          "files": facts.files,
        },
        "coverage": {
          "samples": f"{facts.count - len(facts.absent)}/{facts.count}",
          "absent": facts.absent,
          "without_file": {k: len(v) for k, v in facts.lacking.items()},
          "read": found.present,
          "silent": found.protocol.silent,
          "rule": RULE,
        },
        "checkpoint": found.checkpoint,
        "command": found.command,
        "results": rows,
      },
      indent=2,
      sort_keys=True,
    )
    + "\n"
  )


def _missing_wrong(result: Result) -> float | None:
  """The value if what is missing counts as wrong; None: it is no share."""
  measure = find_measure(result.name)
  if measure is None or measure.unit != SHARE or not result.total:
    return None
  return round(result.value * result.n / result.total, 8)


def _figure(figure: Figure | None) -> str:
  return "" if figure is None else f"{figure.value:.3f} ({figure.setting})"


def table(found: ProtocolReport) -> str:
  """The report as an aligned text table, coverage beside every metric."""
  header = ("metric", "value", "95% interval", "n/N", "missing wrong", "MiCo",
            "best public")  # fmt: skip
  rows: list[Sequence[str]] = []
  for metric, r in found.named():
    plain = metric.removesuffix(CHANGED)
    best = found.protocol.best(plain)
    measure = find_measure(r.name)
    wrong = _missing_wrong(r)
    interval = ""
    if r.interval is not None:
      interval = f"{r.interval[0]:.3f} .. {r.interval[1]:.3f}"
    rows.append(
      (
        metric,
        f"{r.value:.3f}" if measure is None else measure.text(r.value),
        interval,
        f"{r.n}/{r.total}",
        f"{wrong:.3f}" if wrong is not None and r.n < r.total else "",
        _figure(found.protocol.best(plain, PAPER)),
        "" if best is None else f"{_figure(best)} {best.model}",
      )
    )
  lines = _aligned(header, rows)
  facts = found.facts
  lines.append(
    f"{found.protocol.title}: {facts.count - len(facts.absent)}/{facts.count} "
    f"samples of the copy have media; ids {facts.sha256[:12]}"
  )
  lost = {k: len(v) for k, v in facts.lacking.items() if v}
  if lost:
    parts = ", ".join(f"{n} without {key}" for key, n in lost.items())
    lines += textwrap.wrap(f"missing: {parts}. {RULE}", 100)
  lines += [f"differs from the protocol: {change}" for change in found.changes]
  return "\n".join(lines)


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  used = [i for i in range(len(header)) if any(row[i] for row in rows)]
  cells = [[row[i] for i in used] for row in (header, *rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(used))]
  lines = [
    "  ".join(
      c.ljust(w) if i == 0 else c.rjust(w)
      for i, (c, w) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in cells
  ]
  lines.insert(1, "-" * max(map(len, lines)))
  return lines


def write(
  found: ProtocolReport, folder: str, examples: Examples | None = None
) -> list[str]:
  """Writes `<name>.json`, `.txt` and `.examples.json`; returns the paths.

  Args:
    found: what was measured.
    folder: made if missing.
    examples: of the evaluation; None, or none found: not written.
  """
  out = epath.Path(folder)
  files.make_folder(out)
  name = epath.Path(found.name).stem
  texts = {f"{name}.json": to_json(found), f"{name}.txt": table(found) + "\n"}
  if examples is not None and examples.found:
    contents = dumps(examples.contents, sort_keys=True) + "\n"
    texts[examples_file(name)] = contents
  for file, text in texts.items():
    files.write_text(out / file, text)
  return [str(out / file) for file in texts]


def listed(
  entries: Sequence[tuple[str, BenchmarkProtocol]],
) -> list[dict[str, Any]]:
  """Rows of the list of protocols, for tables and JSON."""
  return [
    {
      "name": name,
      "task": protocol.task,
      "group": protocol.group,
      "metric": protocol.metric,
      "samples": " or ".join(map(str, protocol.split.count))
      or f"{protocol.split.questions} questions",
      "source": protocol.copy.source,
    }
    for name, protocol in entries
  ]
