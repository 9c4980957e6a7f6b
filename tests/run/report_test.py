from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from mico_jax.run.monitor import metric_log, report


def write_run(folder, steps=40):
  with metric_log.MetricsWriter(folder, tensorboard=False) as writer:
    for step in range(steps):
      writer.write(
        step,
        {
          "loss": 4.0 - 0.05 * step if step != 5 else math.nan,
          "loss/contrastive/tv": 4.0 - 0.05 * step,
          "loss/contrastive/tva": 3.9 - 0.05 * step,
          "loss/matching/tva": 0.7,
          "rows/matching/tva": 4.0,
          "accuracy/matching/tva": 0.5 + 0.01 * step,
          "temperature": 0.07,
          "learning_rate": 1e-3,
          "grad_norm": 1.0 + step,
          "samples_per_second": 100.0,
          "input_wait_share": 0.01,
          "unknown": 7.0,
        },
      )
    writer.write(steps - 1, {"text_to_va/R@1": 0.4}, prefix="eval")
    writer.event(5, "nonfinite", "step 5 skipped")


def test_panels(tmp_path):
  write_run(tmp_path)
  panels = {
    p.title: p for p in report.collect(metric_log.read_metrics(tmp_path))
  }
  assert list(panels)[:3] == ["loss", "contrastive loss", "matching loss"]
  assert set(panels["contrastive loss"].curves) == {"tv", "tva"}
  assert set(panels["matching accuracy"].curves) == {"tva"}
  assert set(panels["matching loss"].curves) == {"tva"}
  assert len(panels["loss"].curves[""][0]) == 39  # without the non-finite one
  assert panels["gradient norm"].log
  assert "unknown" not in str(list(panels))


def test_an_objective_that_is_not_in_the_table_is_drawn():
  lines = [{"step": s, "loss/new_one/tv": 1.0 / (s + 1)} for s in range(6)]
  (panel,) = report.collect(lines)
  assert panel.title == "new one loss"
  assert set(panel.curves) == {"tv"}
  assert panel.smooth


def test_loss_per_task():
  lines = [{"step": s, "task": "ab"[s % 2], "loss": float(s)} for s in range(6)]
  (panel,) = report.collect(lines)
  assert set(panel.curves) == {"a", "b"}


RESULTS = {
  "results": [
    {
      "name": "retrieval/t->va/R@1",
      "value": 0.5,
      "interval": [0.4, 0.6],
      "baseline": 0.01,
      "ceiling": 0.97,
    },
    {"name": "matching/accuracy", "value": 0.9, "interval": None},
    {"name": "matching/accuracy/none", "value": None},
    {"name": "caption/CIDEr", "value": 0.8},
  ]
}


def test_many_bars_leave_out_later_ranks():
  names = [f"retrieval/t->{x}/R@{k}" for x in "abcdefghij" for k in (1, 5, 10)]
  rows = [{"name": n, "value": 0.5} for n in (*names, "matching/va/accuracy")]
  assert len(report.bars({"results": rows[:20]})) == 20
  shown = [bar.name for bar in report.bars({"results": rows})]
  assert shown == [n for n in names if n.endswith("R@1")] + [
    "matching/va/accuracy"
  ]


def test_bars():
  first, second = report.bars(RESULTS)
  assert first.name == "retrieval/t->va/R@1"
  assert (first.low, first.high) == (0.4, 0.6)
  assert (first.chance, first.ceiling) == (0.01, 0.97)
  assert (second.name, second.low) == ("matching/accuracy", None)


def test_smooth_keeps_constants_and_length():
  values = np.full(101, 3.0)
  np.testing.assert_allclose(report.smooth(values), values)
  assert report.smooth([1.0]).tolist() == [1.0]


def test_report_is_a_picture(tmp_path):
  write_run(tmp_path)
  (tmp_path / "evaluation.json").write_text(json.dumps(RESULTS))
  path = report.write_report(tmp_path)
  assert path.name == "report.png"
  with Image.open(path) as image:
    assert image.width > 1000
    assert np.asarray(image.convert("L")).std() > 10


def test_nothing_to_draw(tmp_path):
  with pytest.raises(ValueError, match="nothing to draw"):
    report.write_report(tmp_path)
