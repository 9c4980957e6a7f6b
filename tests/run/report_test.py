from __future__ import annotations

import base64
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from mico_jax import config as config_lib
from mico_jax.cli.main import main
from mico_jax.config import Config
from mico_jax.run.monitor import (
  curves,
  example_grid,
  headlines,
  metric_log,
  outcome,
  panels,
  report,
)


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
  found = {
    p.title: p for p in panels.collect(metric_log.read_metrics(tmp_path))
  }
  assert list(found)[:3] == [
    "loss (weighted sum)",
    "contrastive loss (nats)",
    "matching loss (nats)",
  ]
  assert set(found["contrastive loss (nats)"].curves) == {"tv", "tva"}
  assert set(found["matching accuracy"].curves) == {"tva"}
  assert set(found["matching loss (nats)"].curves) == {"tva"}
  assert (
    len(found["loss (weighted sum)"].curves[""][0]) == 39
  )  # without the non-finite one
  assert found["gradient norm"].log
  assert "unknown" not in str(list(found))


def test_an_objective_that_is_not_in_the_table_is_drawn():
  lines = [{"step": s, "loss/new_one/tv": 1.0 / (s + 1)} for s in range(6)]
  (panel,) = panels.collect(lines)
  assert panel.title == "new one loss"
  assert set(panel.curves) == {"tv"}
  assert panel.smooth


def test_loss_per_task():
  lines = [{"step": s, "task": "ab"[s % 2], "loss": float(s)} for s in range(6)]
  (panel,) = panels.collect(lines)
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
  assert len(headlines.bars({"results": rows[:20]})) == 20
  shown = [bar.name for bar in headlines.bars({"results": rows})]
  assert shown == [n for n in names if n.endswith("R@1")] + [
    "matching/va/accuracy"
  ]


def test_bars():
  first, second = headlines.bars(RESULTS)
  assert first.name == "retrieval/t->va/R@1"
  assert (first.low, first.high) == (0.4, 0.6)
  assert (first.chance, first.ceiling) == (0.01, 0.97)
  assert (second.name, second.low) == ("matching/accuracy", None)


def test_smooth_keeps_constants_and_length():
  values = np.full(101, 3.0)
  np.testing.assert_allclose(curves.smooth(values), values)
  assert curves.smooth([1.0]).tolist() == [1.0]


def texts_of(figure):
  """All texts of a figure, those of legends and axes too."""
  from matplotlib.text import Text

  figure.canvas.draw()
  return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def tile(key, colour):
  out = io.BytesIO()
  Image.new("RGB", (16, 8), colour).save(out, "JPEG")
  data = base64.b64encode(out.getvalue()).decode()
  return {"modality": key, "title": key, "jpeg": data}


def answer(item, place, *, right):
  return {"item": item, "place": place, "right": right, "score": 0.9 / place}


EXAMPLES = {
  "examples": [
    {
      "name": name,
      "chosen": chosen,
      "letters": letters,
      "candidates": 9,
      "rank": rank,
      "query": {"text": f"a {chosen} cone for {letters}"},
      "answers": [answer(i, i + 1, right=i + 1 == rank) for i in range(3)],
    }
    for name, letters in (("retrieval/t->v", "v"), ("retrieval/t->va", "va"))
    for chosen, rank in (("first", 1), ("worst", 2))
  ]
  + [
    {
      "name": "caption/va",
      "chosen": "first",
      "letters": "va",
      "candidates": 0,
      "rank": None,
      "query": {"item": 0},
      "answers": [
        {"text": "a cone $x_", "score": 1.5},
        {"text": "a red cone", "right": True},
      ],
    }
  ],
  "items": {
    "0": {
      "id": "0",
      "tiles": [tile("video", "red"), tile("audio", "blue")],
      "attention": [tile("video", "black")],
    },
    # An image stands for the video that the item lacks.
    "1": {"id": "1", "tiles": [tile("image", "lime")]},
    "2": {"id": "2", "broken": "could not be read", "tiles": []},
  },
}


def test_the_report_shows_what_was_found_and_written():
  figure = report.draw([], evaluation=RESULTS, examples=EXAMPLES, title="r")
  found = texts_of(figure)
  # Of the retrievals, that of most modalities.
  assert "retrieval, text → video + audio: best answers of 9" in found
  assert "“a first cone for va”" in found
  assert "“a first cone for v”" not in found
  assert found.count("1. ✓ right") == found.count("2. ✓ right") == 1
  assert found.count("1. ✗ wrong") == found.count("2. ✗ wrong") == 1
  assert found.count("3. ✗ wrong") == 2
  assert "right at place 2 (of the worst)" in found
  assert found.count("could not be read") == 2
  assert {"a cone $x_", "a red cone", "score 1.500"} <= set(found)
  colours = [
    tuple(np.asarray(image.get_array())[4, 8] > 128)
    for axes in figure.axes
    for image in axes.images
  ]
  red, lime, blue = (tuple(row) for row in np.eye(3, dtype=bool))
  black = (False,) * 3
  one = [red, blue, lime]  # of a query: the third item has no picture
  assert colours == [*one, *one, red, blue, black]


def test_numbers_on_top():
  shown = headlines.cards(RESULTS)
  assert [bar.name for bar in shown] == [
    "retrieval/t->va/R@1",
    "matching/accuracy",
    "caption/CIDEr",
  ]
  found = texts_of(report.draw([], evaluation=RESULTS))
  assert {"text retrieval: R@1", "text → video + audio", "0.500"} <= set(found)
  assert "95%: 0.400 .. 0.600" in found
  assert "chance 0.010   ceiling 0.970" in found
  assert {"captions: CIDEr", "0.800"} <= set(found)


def test_facts_confused_from_the_worst_down():
  rows = [
    {"name": f"hard/t->va{how}/{fact}/pairs won", "value": value}
    | {"baseline": 0.5, "interval": [value - 0.1, value + 0.1]}
    for how in ("", " (re-ranked 8)")
    for fact, value in (("shape", 0.7), ("size", 0.9), ("colour", 0.6))
  ]
  found = headlines.facts({"results": rows})
  assert list(found) == ["hard, text → video + audio"]
  figure = report.draw([], evaluation={"results": [*rows, *RESULTS["results"]]})
  (axes,) = (a for a in figure.axes if "pairs won" in a.get_xlabel())
  labels = [t.get_text() for t in axes.get_yticklabels()]
  assert labels == ["size", "shape", "colour"]  # the last one is on top
  dots = next(x for x in axes.lines if x.get_marker() == "o")
  assert {
    labels[round(y)]: x for x, y in zip(*dots.get_data(), strict=True)
  } == {"shape": 0.7, "size": 0.9, "colour": 0.6}


def test_curves_name_what_they_compare(tmp_path):
  write_run(tmp_path)
  lines = metric_log.read_metrics(tmp_path)
  figure = report.draw(lines)
  found = texts_of(figure)
  assert "evaluation while training" in found
  assert "retrieval" not in found
  assert any("text against video + audio" in text for text in found)
  assert found.count("step") == len([a for a in figure.axes if a.lines])
  (panel, *_), small = panels.overview(panels.collect(lines))
  assert panel.title == "evaluation while training"
  assert [p.title for p in small][:2] == [
    "loss (weighted sum)",
    "learning rate",
  ]
  every = texts_of(report.draw_curves(lines))
  assert {"contrastive loss (nats)", "input wait (share of the time)"} <= set(
    every
  )
  assert {"text against ...", "video", "video + audio"} <= set(every)


def test_pictures_that_are_none_are_said(tmp_path):
  broken = {"modality": "video", "title": "video", "jpeg": "AAAA"}
  items = {"0": {"id": "0", "tiles": [broken]}}
  contents = {"examples": EXAMPLES["examples"], "items": items}
  figure = report.draw([], evaluation=RESULTS, examples=contents)
  assert "not a\npicture" in texts_of(figure)
  assert example_grid.ranked({}) == example_grid.written({}) == []


def test_a_picture_that_fails_does_not_fail_the_run(
  tmp_path, monkeypatch, capsys
):
  write_run(tmp_path)

  def fail(*_: object) -> None:
    raise RuntimeError("no font")

  monkeypatch.setattr(report, "read_and_draw", fail)
  with metric_log.MetricsWriter(tmp_path, start_step=40) as writer:
    path = outcome.write_outcome(writer, tmp_path, Config(), 39, [])
  assert path == ""
  error = capsys.readouterr().err
  assert "no report was drawn: no font" in error
  assert f"mico-jax report {tmp_path} --out report.png" in error


def test_settings_are_what_differs_from_the_defaults():
  assert outcome.settings_of(Config()) == {}
  config = config_lib.override(Config(), ["seed=5", "train.steps=7"])
  assert outcome.settings_of(config) == {"seed": 5, "train.steps": 7}


def test_report_is_drawn_again(tmp_path, capsys):
  write_run(tmp_path)
  (tmp_path / "evaluation.json").write_text(json.dumps(RESULTS))
  (tmp_path / "examples.json").write_text(json.dumps(EXAMPLES))
  path = report.write_report(tmp_path)
  assert path.name == "report.png"
  with Image.open(path) as image:
    assert image.width > 1000
    first = np.asarray(image.convert("L"))
  assert first.std() > 10
  out = str(tmp_path / "again.PNG")
  assert main(["report", str(tmp_path), "--out", out]) == 0
  assert capsys.readouterr().out.strip() == out
  with Image.open(out) as image:
    np.testing.assert_array_equal(np.asarray(image.convert("L")), first)
  assert main(["report", *[str(tmp_path)] * 2, "--out", out]) == 2
  assert "a picture shows one run, got 2" in capsys.readouterr().err
  assert main(["report", str(tmp_path / "none"), "--out", out]) == 2
  assert "nothing to draw" in capsys.readouterr().err


def test_nothing_to_draw(tmp_path):
  with pytest.raises(ValueError, match="nothing to draw"):
    report.write_report(tmp_path)
