"""`pretrain --init`: other sizes, new heads, merged deltas, tokenizers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from mico_jax.checkpoint import restore
from mico_jax.checkpoint.described import Extras
from mico_jax.checkpoint.manager import Manager
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config, ModelConfig, OptimizerConfig
from mico_jax.models import build
from mico_jax.run.warm_start import warm_start
from mico_jax.testing.tiny_checkpoint import Weights, tiny_config
from mico_jax.train import lora
from mico_jax.train.state import init_params


def model_of(config: Config, **changes: Any) -> Config:
  """The config with other model fields; one narrow layer."""
  model = dataclasses.replace(
    config.model,
    vision=dataclasses.replace(config.model.vision, depth=1, width=16),
    text=dataclasses.replace(config.model.text, depth=1, width=16),
  )
  return dataclasses.replace(
    config, model=dataclasses.replace(model, **changes)
  )


def fresh(config: Config, seed: int = 1) -> dict[str, Any]:
  """Newly initialised parameters."""
  return dict(init_params(build(config.model), config, jax.random.key(seed)))


def save(
  workdir: Any, config: Config, params: Any, *, ema: Any = None, **info: Any
) -> Any:
  """Saves parameters as step 1 of a workdir."""
  keeper = Manager(workdir, config=config, extras=Extras(tokenizer_info=info))
  keeper.save(1, Weights(params, ema=ema))
  keeper.close()
  return workdir


@pytest.fixture(scope="module")
def base() -> Config:
  """The config of the checkpoint."""
  return model_of(tiny_config())


@pytest.fixture(scope="module")
def source(base, tmp_path_factory):
  """(workdir, parameters) of the checkpoint."""
  params = jax.device_get(fresh(base, seed=2))
  folder = save(tmp_path_factory.mktemp("source"), base, params, sha256="abc")
  return folder, params


def larger(model: ModelConfig) -> dict[str, Any]:
  """Larger images, more frames, one more head."""
  return {
    "vision": dataclasses.replace(model.vision, image_size=32),
    "frame_table": {**model.frame_table, "video": 4},
    "heads": (*model.heads, "vad"),
  }


def test_tables_are_resized_and_new_heads_listed(base, source):
  config = dataclasses.replace(
    base, model=dataclasses.replace(base.model, **larger(base.model))
  )
  target = fresh(config)
  found, report, notes = warm_start(target, source[0])
  assert set(report.resized) == {"vision/pos_embed", "frame_embed/video"}
  assert set(report.new) == {
    "contrastive_head/vad/kernel",
    "contrastive_head/vad/bias",
  }
  assert not report.unused
  assert not notes
  text = "\n".join(report.lines())
  assert "resized: " in text
  assert "new: contrastive_head/vad/" in text
  assert found["vision"]["pos_embed"].shape == (17, 16)
  assert found["frame_embed"]["video"].shape == (4, 16)
  np.testing.assert_array_equal(
    found["contrastive_head"]["vad"]["kernel"],
    target["contrastive_head"]["vad"]["kernel"],
  )
  np.testing.assert_array_equal(
    found["text"]["embed"]["words"], source[1]["text"]["embed"]["words"]
  )


def test_a_sensor_that_the_checkpoint_lacks_brings_fresh_values(base, source):
  table = {**base.model.frame_table, "imu": 1}
  model = dataclasses.replace(
    base.model, frame_table=table, heads=(*base.model.heads, "m")
  )
  target = fresh(dataclasses.replace(base, model=model))
  found, report, _ = warm_start(target, source[0])
  assert {path.rpartition("/")[0] for path in report.new} == {
    "embedding/imu/proj",
    "project/imu/dense",
    "project/imu/norm",
    "contrastive_head/m",
    "type_embed",
    "frame_embed",
  }
  for path in ("embedding", "type_embed"):
    jax.tree.map(
      np.testing.assert_array_equal, found[path]["imu"], target[path]["imu"]
    )
  jax.tree.map(
    np.testing.assert_array_equal, found["vision"], source[1]["vision"]
  )
  (told,) = [line for line in report.lines() if line.startswith("new: ")]
  assert "embedding/imu/proj/kernel" in told


def test_another_preprocessing_is_told(base, source, tmp_path):
  then = {"depth": {"train": "metric"}, "image": {"train": "plain"}}
  keeper = Manager(tmp_path, config=base, extras=Extras(preprocessing=then))
  keeper.save(1, Weights(source[1]))
  keeper.close()
  now = {**then, "depth": {"train": "metric_standardised"}, "audio": {}}
  _, _, notes = warm_start(fresh(base), tmp_path, preprocessing=now)
  (note,) = notes
  assert "data.inputs.depth.mode='metric'; this run" in note
  assert warm_start(fresh(base), tmp_path, preprocessing=then)[2] == []


@pytest.mark.parametrize("length", [5, 200])
def test_text_positions_keep_what_both_have(base, source, length):
  text = dataclasses.replace(base.model.text, max_positions=length)
  config = dataclasses.replace(
    base, model=dataclasses.replace(base.model, text=text)
  )
  found, report, _ = warm_start(fresh(config), source[0])
  assert report.resized == ("text/embed/positions",)
  got = found["text"]["embed"]["positions"]
  want = source[1]["text"]["embed"]["positions"]
  assert got.shape == (length, 16)
  both = min(length, len(want))
  np.testing.assert_array_equal(got[:both], want[:both])
  np.testing.assert_array_equal(got[len(want) :][:both], want[: length - both])


def test_dropped_heads_are_listed(base, source):
  config = dataclasses.replace(
    base, model=dataclasses.replace(base.model, heads=("t", "v"))
  )
  _, report, _ = warm_start(fresh(config), source[0])
  assert "contrastive_head/va/kernel" in report.unused


def test_other_width_is_refused_in_one_line(base, source):
  vision = dataclasses.replace(base.model.vision, width=32)
  config = dataclasses.replace(
    base, model=dataclasses.replace(base.model, vision=vision)
  )
  with pytest.raises(CheckpointError, match="does not fit the model") as caught:
    warm_start(fresh(config), source[0])
  assert "\n" not in str(caught.value)


def test_deltas_of_the_checkpoint_are_merged(base, tmp_path):
  config = dataclasses.replace(
    base, optimizer=OptimizerConfig(lora_rank=2, lora_alpha=8.0)
  )
  params = jax.device_get(fresh(config))
  rng = np.random.default_rng(0)
  params[lora.KEY] = jax.tree.map(
    lambda x: rng.standard_normal(x.shape).astype(np.float32), params[lora.KEY]
  )
  save(tmp_path, config, params)
  (path, delta), *_ = params[lora.KEY].items()
  found, report, _ = warm_start(fresh(base), tmp_path)
  assert lora.KEY not in found
  assert not any(name.startswith("lora") for name in report.unused)
  names = path.split("/")
  before, after = params, found
  for name in names:
    before, after = before[name], after[name]
  np.testing.assert_allclose(
    after, before + 8.0 / 2 * (delta["a"] @ delta["b"]), rtol=1e-5, atol=1e-6
  )
  # A run with deltas of its own starts them anew, on the merged weights.
  again, report, _ = warm_start(fresh(config), tmp_path)
  assert any(name.startswith("lora/") for name in report.new)
  assert not np.any(again[lora.KEY][path]["b"])


def test_averaged_weights_are_taken(base, source, tmp_path):
  averaged = jax.tree.map(lambda x: x + 1, source[1])
  save(tmp_path, base, source[1], ema=averaged)
  found, _, _ = warm_start(fresh(base), tmp_path)
  np.testing.assert_array_equal(
    found["vision"]["pos_embed"], averaged["vision"]["pos_embed"]
  )


def test_another_tokenizer_is_noted(base, source):
  target = fresh(base)
  assert not warm_start(target, source[0], tokenizer_sha256="abc")[2]
  (note,) = warm_start(target, source[0], tokenizer_sha256="xyz")[2]
  assert "tokenizer" in note


def test_newest_damaged_checkpoint_is_noted(base, source, tmp_path):
  save(tmp_path, base, source[1])
  keeper = Manager(tmp_path, config=base)
  keeper.save(2, Weights(source[1]))
  keeper.close()
  (restore.step_folders(tmp_path)[0] / "manifest" / "manifest.json").unlink()
  _, _, notes = warm_start(fresh(base), tmp_path)
  assert notes[0].startswith("skipped step 2: ")
