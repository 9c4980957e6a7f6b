"""Promise: a modality is one file and a table line; the rest follows.

Two modalities that the package does not have are put into the table: `sonar`,
a grid of pixels, and `tactile`, a signal with a tokeniser of its own. They
train, evaluate, embed, score and caption without a line elsewhere.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import io
import json
import pathlib
import tokenize
from typing import Any

import jax
import numpy as np
import pytest

import mico_jax
from mico_jax import modalities
from mico_jax.cli import main as cli
from mico_jax.config import (
  EvaluationConfig,
  InputConfig,
  ObjectivesConfig,
  OptimizerConfig,
  TaskConfig,
  TrainConfig,
)
from mico_jax.data.batches import batch_spec
from mico_jax.interop.exporting import export
from mico_jax.interop.exporting import torch_folder as exporter
from mico_jax.modalities import MODALITIES
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import setup
from mico_jax.run.pretrain import pretrain
from mico_jax.testing.tiny_checkpoint import tiny_config
from mico_jax.testing.tiny_data import manifest_source, png, write_manifest

HERE = pathlib.Path(__file__).parent
MAX_LINES = 40


def load(name: str) -> Any:
  """The record of a modality file of this folder."""
  spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return getattr(module, name.upper())


def code_lines(path: pathlib.Path) -> int:
  """Lines with code: no blank lines, comments or docstrings."""
  text = path.read_text()
  used: set[int] = set()
  skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
          tokenize.DEDENT, tokenize.ENDMARKER}  # fmt: skip
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type not in skip:
      used.update(range(token.start[0], token.end[0] + 1))
  for node in ast.walk(ast.parse(text)):
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
      value = body[0].value
      if isinstance(value, ast.Constant) and isinstance(value.value, str):
        used -= set(range(value.lineno, (value.end_lineno or 0) + 1))
  return len(used)


SHORT = (
  *("image", "video", "normal", "sonar", "thermal", "xray"),
  *("imu", "biosignal", "timeseries", "generic_signal"),
)


@pytest.mark.parametrize("key", SHORT)
def test_a_modality_is_short(key):
  package = pathlib.Path(modalities.__file__).parent
  folder = HERE if key == "sonar" else package
  assert code_lines(folder / f"{key}.py") <= MAX_LINES


def sonar_config(manifest: pathlib.Path) -> Any:
  """Image, sonar and touch of a manifest, all objectives on one context."""
  base = tiny_config()
  model = dataclasses.replace(
    base.model,
    vision=dataclasses.replace(base.model.vision, depth=1, width=16),
    text=dataclasses.replace(base.model.text, depth=1, width=16),
    heads=("t", "v", "w", "q", "iwq"),
    frame_table={"video": 1, "sonar": 1, "tactile": 2},
  )
  data = dataclasses.replace(
    base.data,
    sources={"all": manifest_source(manifest)},
    inputs={
      "image": InputConfig(mode="crop_flip_smooth", eval_mode="plain"),
      "sonar": InputConfig(mode="crop_flip"),
      "tactile": InputConfig(frames=2),
    },
  )
  task = TaskConfig(
    sources={"all": 1},
    batch_size=4,
    objectives={
      "contrastive": ("tw", "tq", "tiwq", "i:w"),
      "matching": ("tiwq",),
      "captioning": ("tq",),
    },
  )
  return dataclasses.replace(
    base,
    model=model,
    data=data,
    tasks={"new": task},
    objectives=ObjectivesConfig(),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.0),
    train=TrainConfig(steps=2, log_every=1, tensorboard=False),
    evaluation=EvaluationConfig(
      source="all", size=8, batch_size=8, groups=("w", "q", "iwq"), bootstrap=10
    ),
  )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(folder of the files, config, workdir, summary) of a short run."""
  folder = tmp_path_factory.mktemp("new")
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(MODALITIES, "sonar", load("sonar"))
    patch.setitem(MODALITIES, "tactile", load("tactile"))
    patch.setattr(
      setup, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1])
    )
    rng = np.random.default_rng(0)
    signals = rng.standard_normal((8, 32, 6)).astype(np.float32)
    np.savez(folder / "tactile.npz", tactile=signals)
    for i in range(8):
      (folder / f"{i}.sonar").write_bytes(png(200 - 20 * i))
    path = write_manifest(
      folder,
      sonar=[f"{i}.sonar" for i in range(8)],
      tactile=[f"tactile.npz:tactile[{i}]" for i in range(8)],
    )
    config = sonar_config(path)
    summary = pretrain(config, folder / "w")
    yield folder, config, folder / "w", summary


def test_batches_hold_them(trained):
  _, config, _, _ = trained
  inputs = batch_spec(config, "new")["inputs"]
  assert inputs["sonar"].shape == (4, 1, 16, 16, 3)
  assert inputs["tactile"].shape == (4, 2, 32, 6)
  assert inputs["tactile"].dtype == "float16"


def test_they_train_and_evaluate(trained):
  _, _, _, summary = trained
  assert summary.step == 2
  assert np.isfinite(summary.metrics["loss"])
  names = {result.name for result in summary.results}
  assert {f"retrieval/t->{x}/R@1" for x in ("w", "q", "iwq")} <= names
  assert {"instance/i->w/R@1", "instance/w->i/R@1"} <= names


def test_they_embed_match_and_write(trained):
  folder, config, workdir, _ = trained
  model = mico_jax.load(str(workdir))
  assert {"sonar", "tactile"} <= set(model.modalities)
  signals = np.load(folder / "tactile.npz")["tactile"]
  found = model.embed(
    sonar=[str(folder / "0.sonar"), str(folder / "1.sonar")],
    tactile=list(signals[:2]),
  )
  for key in ("sonar", "tactile"):
    assert found[key].shape == (2, config.model.embed_dim)
    np.testing.assert_allclose(
      np.linalg.norm(found[key], axis=-1), 1.0, rtol=1e-5
    )
  assert len(model.caption(tactile=list(signals[:1]))) == 1
  scores = model.match(text=["a cube"], sonar=[str(folder / "0.sonar")])
  assert np.all((np.asarray(scores) >= 0) & (np.asarray(scores) <= 1))


def test_they_export_to_pytorch(trained, tmp_path):
  pytest.importorskip("torch")
  source = export.open_source(str(trained[2]))
  exporter.write(source, tmp_path, export.ExportReport("torch", {}))
  gaps = exporter.compare(source, tmp_path)
  for key in ("sonar", "tactile"):
    mine = [gap for name, gap in gaps.items() if f"embed/{key}/" in name]
    assert len(mine) == 6
    assert max(mine) <= export.TOLERANCE
  assert max(v for k, v in gaps.items() if "caption" in k) == 0


def test_command_line_knows_them(trained, capsys):
  folder, _, workdir, _ = trained
  files = [str(folder / "0.sonar"), f"sonar:{folder / '1.png'}"]
  argv = ["score", "--checkpoint", str(workdir), "--text", "a cube", "--json"]
  assert cli.main([*argv, *files]) == 0
  text = capsys.readouterr().out
  assert "0.sonar" in text
  assert json.loads(text)
