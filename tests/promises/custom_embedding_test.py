"""Promise: a modality may bring a tokeniser and a padded set of tokens.

`cloud` is defined here: sets of points of different sizes, one token a point.
It trains, evaluates, embeds, matches, captions, exports, and agrees with its
PyTorch form; whatever stands in padding changes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mico_jax
from mico_jax.checkpoint.restore import Checkpoint
from mico_jax.config import (
  Config,
  ConfigError,
  EvaluationConfig,
  InputConfig,
  ObjectivesConfig,
  OptimizerConfig,
  TaskConfig,
  TrainConfig,
)
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.samples import load_inputs
from mico_jax.data.sources import open_source
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.interop.exporting import export, stablehlo, torch_embeddings
from mico_jax.interop.exporting import torch_folder as exporter
from mico_jax.layers.mlp import Dense
from mico_jax.modalities import (
  MODALITIES,
  ArraySpec,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Modality,
  Mode,
)
from mico_jax.models import build, forward
from mico_jax.objectives import compute
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import setup
from mico_jax.run.pretrain import pretrain
from mico_jax.testing.tiny_checkpoint import tiny_config
from mico_jax.testing.tiny_data import manifest_source, write_manifest
from mico_jax.train.state import init_state
from mico_jax.train.step import make_train_step

POINTS = 6  # tokens of a frame
LIMIT = 1e-5  # of PyTorch
SAME = 1e-6  # of sums of other lengths
LETTER, KEY = "q", "cloud"
FILL = {"padding": 0.0}  # what `host` leaves where there is no point


# ------------------------------------------------------------- the modality
class CloudEmbed(nn.Module):
  """A token for each point; the last channel, whether it is one, is not read.

  Attributes:
    width: of the tokens.
    dtype: compute dtype.
    scale: of the coordinates.
  """

  width: int
  dtype: Any = jnp.float32
  scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [B, points, width]."""
    return Dense(self.width, self.dtype, name="proj")(x[..., :3] * self.scale)


TORCH = """
import torch
from torch import nn


class CloudEmbed(nn.Module):
  def __init__(self, width, frame, scale=1.0):
    super().__init__()
    self.scale = scale
    self.proj = nn.Linear(frame[-1] - 1, width)

  def forward(self, x):
    return self.proj(x[..., :3] * self.scale)

  def valid(self, x):
    return x[..., 3] > 0.5
"""


def decode(raw: Any, geometry: Geometry) -> np.ndarray:
  """Points [N, 3]."""
  del geometry
  points = np.asarray(raw, np.float32)
  if points.ndim != 2 or points.shape[1] != 3 or not len(points):
    raise DecodeError(f"expected points [N, 3], got {points.shape}.")
  return points


def host(points: np.ndarray, geometry: Geometry, rng: Any = None) -> np.ndarray:
  """Points as frames [T, POINTS, 4], dealt out in turn, then padding."""
  del rng
  frames = np.full((geometry.frames, POINTS, 4), FILL["padding"], np.float32)
  frames[..., 3] = 0.0
  for t, frame in enumerate(frames):
    some = points[t :: geometry.frames][:POINTS]
    frame[: len(some), :3] = some
    frame[: len(some), 3] = 1.0
  return frames


def example(geometry: Geometry, seed: int) -> np.ndarray:
  """Fewer points than there is room for."""
  rng = np.random.default_rng(seed)
  return rng.standard_normal((3 * geometry.frames + seed, 3)).astype("float32")


def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
  del geometry
  return array.astype(xp.float32)


def valid(frames: Any, *, xp: Any) -> Any:
  del xp
  return frames[..., 3] > 0.5


CLOUD = Modality(
  key=KEY,
  letter=LETTER,
  kind="knowledge",
  spec=ArraySpec(("T", "N", "C"), "float32", "metre", (-1e4, 1e4)),
  decode=decode,
  modes={"plain": Mode("plain", host, to_pixels)},
  default_mode="plain",
  example=example,
  embedding=CustomEmbedding(
    f"{__name__}:CloudEmbed",
    frame=(POINTS, 4),
    tokens=POINTS,
    torch="cloud_torch:CloudEmbed",
    options={"scale": 0.5},
    valid=valid,
  ),
  context_type=KEY,
  default_input=InputConfig(frames=2),
)


def record_of(**changes: Any) -> Modality:
  """The record with another embedding."""
  assert isinstance(CLOUD.embedding, CustomEmbedding)
  embedding = dataclasses.replace(CLOUD.embedding, **changes)
  return dataclasses.replace(CLOUD, embedding=embedding)


@pytest.fixture(autouse=True, scope="module")
def table(tmp_path_factory):
  """The modality in the table, its PyTorch file where Python finds it."""
  folder = tmp_path_factory.mktemp("sources")
  (folder / "cloud_torch.py").write_text(TORCH)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(MODALITIES, KEY, CLOUD)
    patch.syspath_prepend(str(folder))
    patch.setattr(
      setup, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1])
    )
    yield


# ----------------------------------------------------------------- a user's way
def samples(count: int = 8) -> list[np.ndarray]:
  """Point sets of 1 to 11 points, up to 6 in each of two frames."""
  rng = np.random.default_rng(0)
  sizes = [11, 1, 4, 7, 10, 2, 5, 12][:count]
  return [rng.standard_normal((n, 3)).astype(np.float32) for n in sizes]


def base_config(**model: Any) -> Config:
  base = tiny_config()
  return dataclasses.replace(
    base,
    model=dataclasses.replace(
      base.model,
      vision=dataclasses.replace(base.model.vision, depth=2, width=16),
      text=dataclasses.replace(base.model.text, depth=1, width=16),
      heads=("t", "v", LETTER, f"i{LETTER}"),
      frame_table={"video": 1, KEY: 2},
      **model,
    ),
  )


def run_config(manifest: pathlib.Path) -> Config:
  both, alone = f"ti{LETTER}", f"t{LETTER}"
  base = base_config()
  return dataclasses.replace(
    base,
    data=dataclasses.replace(
      base.data,
      sources={"all": manifest_source(manifest)},
      inputs={"image": InputConfig(mode="plain")},
    ),
    tasks={
      "new": TaskConfig(
        sources={"all": 1},
        batch_size=4,
        objectives={
          "contrastive": (alone, both),
          "matching": (both,),
          "captioning": (alone,),
        },
      )
    },
    objectives=dataclasses.replace(
      ObjectivesConfig(),
      matching=dataclasses.replace(ObjectivesConfig().matching, group_rows=2),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.0),
    train=TrainConfig(steps=2, log_every=1, tensorboard=False),
    evaluation=EvaluationConfig(
      source="all",
      size=8,
      batch_size=8,
      groups=(LETTER, f"i{LETTER}"),
      bootstrap=10,
    ),
  )


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
  """(folder, summary of a run) of a manifest with point sets."""
  folder = tmp_path_factory.mktemp("cloud")
  np.savez(
    folder / "cloud.npz", **{f"c{i}": x for i, x in enumerate(samples())}
  )
  write_manifest(folder, cloud=[f"cloud.npz:c{i}" for i in range(8)])
  return folder, pretrain(run_config(folder / "manifest.jsonl"), folder / "w")


@pytest.fixture(scope="module")
def model(trained):
  return mico_jax.load(str(trained[0] / "w"))


def test_it_trains_and_evaluates(trained):
  _, summary = trained
  assert summary.step == 2
  assert np.isfinite(summary.metrics["loss"])
  names = {result.name for result in summary.results}
  assert f"retrieval/t->{LETTER}/R@1" in names


def test_padding_changes_no_training(trained, monkeypatch):
  config = run_config(trained[0] / "manifest.jsonl")
  mesh = make_mesh(config.parallel, jax.devices()[:1])
  found = []
  for micro_batches in (1, 2):
    options = dataclasses.replace(config.train, micro_batches=micro_batches)
    session = setup.resolve(dataclasses.replace(config, train=options))
    task = session.config.tasks["new"]
    state = init_state(
      session.model, session.config, mesh, optimizer=session.optimizer
    )
    step = make_train_step(
      session.model,
      session.config,
      task,
      session.tokenizer.info,
      mesh,
      optimizer=session.optimizer,
      donate=False,
    )
    for padding in (0.0, 1e4):
      monkeypatch.setitem(FILL, "padding", padding)
      pipeline = Pipeline(
        session.config,
        session.tokenizer,
        end_step=1,
        sources=dict(session.sources),
      )
      (_, _, batch), *_ = list(pipeline)
      assert (np.abs(batch["inputs"][KEY]).max() > 1e3) == (padding > 0)
      after, metrics = step(state, sharding.put_batch(batch, mesh))
      found.append((float(compute(metrics["loss"])), after.params))
  direct, filled, cached, both = found
  assert direct[0] == filled[0]
  jax.tree.map(np.testing.assert_array_equal, direct[1], filled[1])
  assert cached[0] == both[0]
  jax.tree.map(np.testing.assert_array_equal, cached[1], both[1])
  np.testing.assert_allclose(cached[0], direct[0], rtol=1e-5)


def test_it_embeds_matches_and_writes(model, monkeypatch):
  points = samples(3)
  plain = model.embed(cloud=points)[KEY]
  np.testing.assert_allclose(np.linalg.norm(plain, axis=-1), 1.0, rtol=1e-5)
  assert np.abs(plain[0] - plain[1]).max() > 1e-4
  match = model.match(text=["a cube"] * 3, cloud=points)
  captions = model.caption(cloud=points)
  monkeypatch.setitem(FILL, "padding", -1e4)
  np.testing.assert_array_equal(model.embed(cloud=points)[KEY], plain)
  np.testing.assert_array_equal(
    model.match(text=["a cube"] * 3, cloud=points), match
  )
  assert model.caption(cloud=points) == captions


def test_it_exports(trained, model, tmp_path):
  pytest.importorskip("torch")
  folder, _ = trained
  source = export.open_source(str(folder / "w"))
  exporter.write(source, tmp_path, export.ExportReport("torch", {}))
  gaps = exporter.compare(source, tmp_path)
  ours = [name for name in gaps if f"/{KEY}/" in name]
  assert len(ours) == 6  # three inputs, prepared by us and by the folder
  assert max(v for k, v in gaps.items() if "logits" not in k) <= LIMIT
  assert (tmp_path / "embeddings" / f"{KEY}.py").read_text() == TORCH
  about = json.loads((tmp_path / "config.json").read_text())
  assert about["modalities"][KEY]["tokens"] == {
    "class": "CloudEmbed",
    "frame": [POINTS, 4],
    "options": {"scale": 0.5},
    "padded": True,
  }


def test_its_functions_are_exported(trained, tmp_path):
  source = export.open_source(str(trained[0] / "w"))
  stablehlo.write(source, tmp_path, export.ExportReport("stablehlo", {}))
  gaps = stablehlo.compare(source, tmp_path)
  assert {k for k in gaps if KEY in k}
  assert max(gaps.values()) <= LIMIT


# ------------------------------------------------------------- every option
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
  "plain": ({}, {}, "cls"),
  "mean": ({}, {}, "mean"),
  "registers": ({"registers": 2}, {}, "cls"),
  "map": ({"pooling": "map", "qkv_bias": "all"}, {}, "cls"),
  "pool_frames": ({}, {"pool_frames": True}, "cls"),
  "weights": ({}, {"frame_weights": True, "frame_changes": (KEY,)}, "mean"),
  "unrolled": ({}, {"scan": False, "remat": "full"}, "cls"),
}


def arrays(fill: float, points: int = POINTS) -> np.ndarray:
  """Three rows of two frames; a row with an empty frame is among them."""
  rng = np.random.default_rng(1)
  x = np.full((3, 2, points, 4), fill, np.float32)
  x[..., 3] = 0.0
  for row, sizes in enumerate([(6, 3), (2, 5), (4, 0)]):
    for t, size in enumerate(sizes):
      x[row, t, :size, :3] = rng.standard_normal((size, 3))
      x[row, t, :size, 3] = 1.0
  return x


def random_params(model: Any) -> Any:
  rng = np.random.default_rng(2)
  return jax.tree.map(
    lambda x: jnp.asarray(
      rng.standard_normal(x.shape) / max(x.shape[-2:-1] or (4,)) ** 0.5,
      jnp.float32,
    ),
    model.abstract_params(),
  )


def variant(name: str) -> tuple[Config, Modality]:
  vision, model, pooling = OPTIONS[name]
  config = base_config(**model)
  changed = dataclasses.replace(config.model.vision, **vision)
  return (
    dataclasses.replace(
      config, model=dataclasses.replace(config.model, vision=changed)
    ),
    dataclasses.replace(CLOUD, pooling=pooling),
  )


def outputs(model: Any, params: Any, pixels: Any) -> dict[str, Any]:
  """Embedding, keys and values of the context, matching logits."""
  encoded = forward.encode(model, params, {KEY: pixels}, {}, {}, pad=0)
  ids = jnp.tile(jnp.array([[2, 9, 11, 3]]), (len(pixels), 1))
  context = forward.project(model, params, encoded, LETTER)
  rows = forward.embed(model, params, encoded, (LETTER,))
  return {
    "embed": rows[LETTER],
    "match": forward.match(model, params, ids, context),
  }


@pytest.mark.parametrize("name", OPTIONS)
def test_padding_changes_nothing(name, monkeypatch):
  config, record = variant(name)
  monkeypatch.setitem(MODALITIES, KEY, record)
  model = build(config.model)
  params = random_params(model)

  def loss(params: Any, pixels: Any) -> tuple[jax.Array, Any]:
    found = outputs(model, params, pixels)
    weights = jnp.arange(1.0, 4.0)[:, None]
    total = sum((weights * jnp.sin(3 * x)).sum() for x in found.values())
    return total, found

  run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  (_, want), grads = run(params, jnp.asarray(arrays(0.0)))
  (_, got), filled = run(params, jnp.asarray(arrays(321.0)))
  for key, value in want.items():
    np.testing.assert_array_equal(value, got[key])
    # Rows differ, so what is compared tells something of the inputs.
    assert np.abs(value[0] - value[1]).max() > 1e-3
  jax.tree.map(np.testing.assert_array_equal, grads[0], filled[0])
  assert np.abs(filled[0]["embedding"][KEY]["proj"]["kernel"]).max() > 0
  of_padding = np.asarray(filled[1])[arrays(0.0)[..., 3] == 0]
  assert not of_padding.any()

  # Room for more tokens is no other input.
  wide = dataclasses.replace(
    record_of(frame=(9, 4), tokens=9), pooling=record.pooling
  )
  monkeypatch.setitem(MODALITIES, KEY, wide)
  more = outputs(build(config.model), params, jnp.asarray(arrays(-7.0, 9)))
  for key, value in want.items():
    np.testing.assert_allclose(value, more[key], atol=SAME * 10)


def test_without_its_mask_padding_would_count(monkeypatch):
  """The check above can fail: the same tokens unmasked."""
  monkeypatch.setitem(MODALITIES, KEY, record_of(valid=None))
  model = build(base_config().model)
  params = random_params(model)
  want = outputs(model, params, jnp.asarray(arrays(0.0)))
  got = outputs(model, params, jnp.asarray(arrays(321.0)))
  for key, value in want.items():
    assert np.abs(value - got[key]).max() > 1e-3


def test_an_empty_frame_is_none():
  model = build(base_config().model)
  params = random_params(model)
  x = jnp.asarray(arrays(0.0))
  tokens = model.encode(params, KEY, x)
  mask = model.valid_tokens(KEY, x)
  pooled = model.pool(params, KEY, tokens, token_mask=mask)
  first = model.pool(params, KEY, tokens[:, :1], token_mask=mask[:, :1])
  np.testing.assert_allclose(pooled[2], first[2], atol=SAME)
  assert np.abs(pooled[0] - first[0]).max() > 1e-3
  context = model.context(
    params, LETTER, {LETTER: tokens}, masks={LETTER: mask}
  )
  counts = [6 + 3 + 2, 2 + 5 + 2, 4 + 1]  # with the class token of each frame
  assert context.mask is not None
  np.testing.assert_array_equal(context.mask.sum(axis=1), counts)


@pytest.mark.parametrize("name", OPTIONS)
def test_torch_agrees(name, monkeypatch, tmp_path):
  torch = pytest.importorskip("torch")
  config, record = variant(name)
  monkeypatch.setitem(MODALITIES, KEY, record)
  model, tokenizer = build(config.model), make_tokenizer(config.data.tokenizer)
  params = random_params(model)
  host_params = jax.tree.map(np.asarray, params)
  checkpoint = Checkpoint(tmp_path, 0, config, {}, host_params, "params", {})
  source = export.OpenedCheckpoint(checkpoint, host_params, tokenizer, model)
  exporter.write(source, tmp_path, export.ExportReport("torch", {}))
  other = exporter.load_module(tmp_path).MiCo.from_folder(tmp_path)
  ids = np.tile(np.array([[2, 9, 11, 3]]), (3, 1))
  with jax.default_matmul_precision("highest"):
    want = outputs(model, params, jnp.asarray(arrays(0.0)))
  with torch.no_grad():
    x = torch.as_tensor(arrays(321.0))
    mask = other.valid_tokens(KEY, x)
    tokens = other.encode(KEY, x)
    pooled = {LETTER: other.pool(KEY, tokens, mask)}
    context = other.context(LETTER, {LETTER: tokens}, {LETTER: mask})
    hidden = other.encode_text(torch.as_tensor(ids), context=context)
    got = {
      "embed": other.features(LETTER, pooled),
      "match": other.matching_logits(hidden, torch.as_tensor(ids)),
    }
    tower = other.tower(KEY)(x)
  for key, value in want.items():
    scale = max(1.0, float(np.abs(value).max()))
    np.testing.assert_allclose(value, got[key].numpy(), atol=LIMIT * scale)
  np.testing.assert_allclose(want["embed"], tower.numpy(), atol=LIMIT)


# ------------------------------------------------------------ what is wrong
def test_nothing_but_padding_is_refused(trained, model, monkeypatch):
  def empty(points: np.ndarray, geometry: Geometry, rng: Any = None) -> Any:
    return host(points[:0], geometry, rng)

  mode = Mode("plain", empty, to_pixels)
  record = dataclasses.replace(CLOUD, modes={"plain": mode})
  monkeypatch.setitem(MODALITIES, KEY, record)
  with pytest.raises(DecodeError, match="no token of this cloud is valid"):
    model.embed(cloud=samples(1))
  monkeypatch.setitem(MODALITIES, KEY, CLOUD)
  monkeypatch.setitem(FILL, "padding", np.nan)
  with pytest.raises(DecodeError, match="this cloud has values that are not"):
    model.embed(cloud=samples(2))
  monkeypatch.setitem(MODALITIES, KEY, record)
  config = run_config(trained[0] / "manifest.jsonl")
  source = open_source(config, "all")
  with pytest.raises(DecodeError, match="no token of this cloud is valid"):
    load_inputs(config, source.record(0), "all", (KEY,), None)


def test_a_wrong_record_is_named(monkeypatch):
  config = base_config().model
  x = jnp.asarray(arrays(0.0))
  for changes, words in (
    ({"module": "no_such_module:X"}, "no_such_module"),
    ({"module": f"{__name__}:NoSuch"}, "NoSuch"),
  ):
    monkeypatch.setitem(MODALITIES, KEY, record_of(**changes))
    with pytest.raises(ConfigError, match=words):
      build(config)
  for changes, words in (
    ({"tokens": 5}, r"gives tokens of shape \(6, 16\)"),
    ({"frame": (5, 4)}, r"frames of shape \(6, 4\)"),
    ({"valid": lambda x, xp: x[:, 0] > 0}, "valid gives"),
    ({"valid": lambda x, xp: x[..., 3]}, "valid gives float32"),
  ):
    monkeypatch.setitem(MODALITIES, KEY, CLOUD)
    model = build(config)
    params = model.init(jax.random.key(0))
    monkeypatch.setitem(MODALITIES, KEY, record_of(**changes))
    with pytest.raises(ValueError, match=words):
      model.encode(params, KEY, x)
  monkeypatch.setitem(MODALITIES, KEY, CLOUD)
  indices = jnp.zeros((3, 2), jnp.int32)
  with pytest.raises(ValueError, match="tokens of its own"):
    model.encode(params, KEY, x, token_indices=indices)


def test_other_encoders_refuse_it():
  config = base_config()
  vision = dataclasses.replace(
    config.model.vision,
    encoder="convnext",
    patch_size=4,
    depth=2,
    mlp_dim=64,
    stage_depths=(1, 1),
    stage_widths=(8, 16),
    num_heads=type(config.model.vision)().num_heads,
  )
  with pytest.raises(ConfigError, match=f"{KEY} brings its own embedding"):
    build(dataclasses.replace(config.model, vision=vision))


@pytest.mark.parametrize(
  ("changes", "source", "words"),
  [
    ({"torch": ""}, "", "no PyTorch form"),
    ({"torch": "no_such_package.file:X"}, "", "no_such_package"),
    ({"torch": "wrong:CloudEmbed"}, "import numpy\n", "imports numpy"),
    ({"torch": "wrong:CloudEmbed"}, "from . import x\n", "this package"),
    ({"torch": "wrong:CloudEmbed"}, "import torch\n", "no class CloudEmbed"),
    (
      {"torch": "wrong:CloudEmbed"},
      TORCH.replace("def valid", "def other"),
      "no method valid",
    ),
  ],
)
def test_an_embedding_without_a_torch_form_is_refused(
  changes, source, words, monkeypatch, tmp_path
):
  (tmp_path / "wrong.py").write_text(source)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setitem(MODALITIES, KEY, record_of(**changes))
  with pytest.raises(ConfigError, match=words):
    torch_embeddings.files(base_config().model)
