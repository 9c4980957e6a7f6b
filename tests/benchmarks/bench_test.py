"""`mico-jax bench`: tables on this machine, peers, users' mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mico_jax import aot
from mico_jax.benchmarks import (
  attention_time,
  loss,
  model_flops,
  step,
  timing,
)
from mico_jax.benchmarks.shapes import SHAPES, Shape
from mico_jax.cli.main import main
from mico_jax.config import VisionConfig
from mico_jax.testing.tiny_model import tiny_vision

TINY = tiny_vision(image_size=16, patch_size=8, width=32, mlp_dim=64)


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setitem(timing._SIDE, "cpu", 32)
  monkeypatch.setitem(SHAPES, "tiny", Shape(9, 9, 2, 8, 2, packed=True))
  monkeypatch.setitem(step.VISION, "tiny", TINY)
  monkeypatch.setitem(step.TOWERS, "tiny", "tiny")


def _records(capsys, *argv):
  assert main(("bench", *argv, "--turns", "2", "--json")) == 0
  return json.loads(capsys.readouterr().out)


def test_attention(tiny, capsys):
  found = _records(capsys, "attention", "--shapes", "tiny", "--peers", "xla")
  assert [(r["pass"], r["implementation"]) for r in found] == [
    (p, i) for p in ("forward", "forward+backward") for i in ("mico_jax", "xla")
  ]
  for record in found:
    assert record["milliseconds"] > 0
    assert record["error"] < 1e-5


def test_peers_that_cannot_run_say_why(tiny):
  (record,) = [
    r
    for r in attention_time.measure(
      SHAPES["tiny"],
      peers=["flash"],
      backward=False,
      dtype=np.dtype(np.float32),
      turns=1,
      limit=1.0,
    )
    if r["implementation"] == "flash"
  ]
  assert record["refused"] == "platform is cpu, not tpu"


def test_block_and_step(tiny, capsys):
  for what in ("block", "step"):
    found = _records(capsys, what, "--shapes", "tiny")
    assert {r["pass"] for r in found} >= {"forward"}
    assert all(r["milliseconds"] > 0 for r in found)


@pytest.mark.multidevice
def test_loss(capsys):
  found = _records(capsys, "loss", "--batch", "64")
  assert {r["implementation"] for r in found} == {*loss.FORMS, "plain"}
  for record in found:
    assert record["gradient_error"] < 1e-5


@pytest.mark.parity
def test_torch_takes_part(tiny, capsys):
  pytest.importorskip("torch")
  found = _records(capsys, "attention", "--shapes", "tiny", "--peer", "torch")
  assert sum(r["implementation"] == "torch" for r in found) == 2
  found = _records(capsys, "loss", "--batch", "64", "--peer", "torch")
  assert found[-1]["implementation"] == "torch"


def test_ratios_are_of_the_same_turn():
  ours, theirs = timing.Timing((1.0, 2.0, 4.0)), timing.Timing((2.0, 4.0, 4.0))
  assert ours.ratio(theirs) == 2.0
  assert theirs.median == 4.0
  assert timing.Timing((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(2 / 3)


def test_model_flops_of_the_giant():
  """533 GFLOP an image, as counted in PyTorch; training is three times that."""
  config = VisionConfig()
  forward = sum(model_flops.forward(config).values())
  assert forward == pytest.approx(533e9, rel=0.01)
  assert sum(model_flops.train(config).values()) == pytest.approx(
    3 * forward, rel=0.001
  )


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (("attention", "--shapes", "nope"), "known: vit_g"),
    (("attention", "--peers", "nope"), "known: xla, cudnn"),
    (("block", "--shapes", "cross_257"), "known: vit_g"),
    (("step", "--peers", "xla"), "known: torch"),
    (("loss", "--batch", "0"), "--batch"),
  ],
)
def test_mistakes(capsys, argv, said):
  assert main(("bench", *argv)) == 2
  assert said in capsys.readouterr().err


def test_unknown_slices(capsys, monkeypatch):
  monkeypatch.setattr(aot, "missing", lambda: None)
  assert main(("bench", "step", "--aot", "v9:2x2")) == 2
  assert "known: v4, v5e" in capsys.readouterr().err
  monkeypatch.setattr(aot, "missing", lambda: "libtpu is not installed")
  assert main(("bench", "step", "--aot", "v5e:2x2")) == 2
  assert "libtpu is not installed" in capsys.readouterr().err
