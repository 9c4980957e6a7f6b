from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from mico_jax.run import logging, report


def write_run(folder, steps=40):
  with logging.MetricsWriter(folder, tensorboard=False) as writer:
    for step in range(steps):
      writer.write(
        step,
        {
          "loss": 4.0 - 0.05 * step if step != 5 else math.nan,
          "contrastive/tv": 4.0 - 0.05 * step,
          "contrastive/tva": 3.9 - 0.05 * step,
          "matching/tva": 0.7,
          "matching/accuracy": 0.5 + 0.01 * step,
          "temperature": 0.07,
          "learning_rate": 1e-3,
          "grad_norm": 1.0 + step,
          "samples_per_second": 100.0,
          "input_wait": 0.01,
          "unknown": 7.0,
        },
      )
    writer.write(steps - 1, {"text_to_va/R@1": 0.4}, prefix="eval")
    writer.event(5, "nonfinite", "step 5 skipped")


def test_panels(tmp_path):
  write_run(tmp_path)
  panels = {p.title: p for p in report.collect(logging.read_metrics(tmp_path))}
  assert list(panels)[:3] == ["loss", "contrastive loss", "matching loss"]
  assert set(panels["contrastive loss"].curves) == {"tv", "tva"}
  assert set(panels["accuracy in training"].curves) == {"matching"}
  assert len(panels["loss"].curves[""][0]) == 39  # without the non-finite one
  assert panels["gradient norm"].log
  assert "unknown" not in str(list(panels))


def test_loss_per_task():
  lines = [{"step": s, "task": "ab"[s % 2], "loss": float(s)} for s in range(6)]
  (panel,) = report.collect(lines)
  assert set(panel.curves) == {"a", "b"}


def test_bars():
  found = report.bars(
    {
      "retrieval": {
        "text->video": {
          "R@1": {"value": 0.5, "interval": [0.4, 0.6], "chance": 0.01},
          "R@5": 0.8,
        },
        "size": 256,
      },
      "matching": {"accuracy": {"value": 0.9, "ceiling": 0.99}},
      "caption": {"CIDEr": 1.2},
      "split": "test",
    }
  )
  assert [b.name for b in found] == [
    "retrieval text->video R@1",
    "retrieval text->video R@5",
    "matching accuracy",
  ]
  assert (found[0].low, found[0].high, found[0].chance) == (0.4, 0.6, 0.01)
  assert found[2].ceiling == 0.99


def test_smooth_keeps_constants_and_length():
  values = np.full(101, 3.0)
  np.testing.assert_allclose(report.smooth(values), values)
  assert report.smooth([1.0]).tolist() == [1.0]


def test_report_is_a_picture(tmp_path):
  write_run(tmp_path)
  (tmp_path / "evaluation.json").write_text(
    json.dumps({"retrieval": {"R@1": {"value": 0.5, "interval": [0.4, 0.6]}}})
  )
  path = report.write_report(tmp_path)
  assert path.name == "report.png"
  with Image.open(path) as image:
    assert image.width > 1000
    assert np.asarray(image.convert("L")).std() > 10


def test_nothing_to_draw(tmp_path):
  with pytest.raises(ValueError, match="nothing to draw"):
    report.write_report(tmp_path)
