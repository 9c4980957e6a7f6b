from __future__ import annotations

import io
import json
import math
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.plugin_hparams_pb2 import (
  HParamsPluginData as PluginData,
)

from mico_jax.config import ConfigError
from mico_jax.run.monitor import metric_log
from mico_jax.testing import memory_path


def test_values_of_every_kind(tmp_path):
  with metric_log.MetricsWriter(tmp_path, tensorboard=False) as writer:
    writer.write(
      3,
      {
        "a": 1,
        "b": np.float32(0.5),
        "c": jnp.asarray(2.0),
        "nan": math.nan,
        "inf": -math.inf,
      },
      task="digits",
      prefix="eval",
    )
  text = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(text)["eval/nan"] == "nan"
  (line,) = metric_log.read_metrics(tmp_path)
  assert line["step"] == 3
  assert line["task"] == "digits"
  assert (line["eval/a"], line["eval/b"], line["eval/c"]) == (1, 0.5, 2.0)
  assert math.isnan(line["eval/nan"])
  assert line["eval/inf"] == -math.inf


def test_resume_drops_the_steps_run_again(tmp_path):
  with metric_log.MetricsWriter(tmp_path, tensorboard=False) as writer:
    for step in range(10):
      writer.write(step, {"loss": step})
  # What a kill leaves: a line cut short.
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 10, "lo')
  with metric_log.MetricsWriter(
    tmp_path, start_step=6, tensorboard=False
  ) as writer:
    for step in range(6, 8):
      writer.write(step, {"loss": -step})
  lines = metric_log.read_metrics(tmp_path)
  assert [x["step"] for x in lines] == list(range(8))
  assert [x["loss"] for x in lines[6:]] == [-6, -7]


def test_fresh_run_starts_an_empty_file(tmp_path):
  for _ in range(2):
    with metric_log.MetricsWriter(tmp_path, tensorboard=False) as writer:
      writer.write(0, {"loss": 1.0})
  assert len(metric_log.read_metrics(tmp_path)) == 1


def test_lines_are_there_without_close(tmp_path):
  writer = metric_log.MetricsWriter(tmp_path, tensorboard=False)
  writer.write(0, {"loss": 1.0})
  assert len(metric_log.read_metrics(tmp_path)) == 1
  writer.close()
  writer.write(1, {"loss": 1.0})
  assert len(metric_log.read_metrics(tmp_path)) == 1


def test_tensorboard(tmp_path):
  with metric_log.MetricsWriter(tmp_path) as writer:
    writer.write(0, {"loss": 1.0, "bad": math.nan})
    writer.event(0, "collapse", "nothing learned")
  (path,) = (tmp_path / "tensorboard").iterdir()
  data = path.read_bytes()
  assert b"loss" in data
  assert b"nothing learned" in data
  assert b"bad" not in data


def events_of(folder):
  """The summaries of an events file, as TensorBoard reads its records."""
  from tensorboardX.proto.event_pb2 import Event

  (path,) = folder.iterdir()
  data, values = path.read_bytes(), []
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    event = Event.FromString(data[12 : 12 + length])
    values += [(event.step, value) for value in event.summary.value]
    data = data[16 + length :]
  return values


def test_outcome_in_tensorboard(tmp_path):
  picture = np.zeros((4, 6, 3), np.uint8)
  picture[1, 2] = (255, 0, 128)
  with metric_log.MetricsWriter(tmp_path) as writer:
    assert writer.shows_pictures
    writer.outcome(
      9,
      {"retrieval/t->va/R@1": 0.75, "lost": math.nan},
      settings={"optimizer.learning_rate": 1e-3, "name": "x", "on": True},
      pictures={"final/examples": picture},
    )
  found = {
    value.tag: (step, value)
    for step, value in events_of(tmp_path / "tensorboard")
  }
  step, value = found["final/retrieval/t_to_va/R_at_1"]
  assert (step, value.simple_value) == (9, 0.75)
  assert "final/lost" not in found
  _, shown = found["final/examples"]
  with Image.open(io.BytesIO(shown.image.encoded_image_string)) as image:
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), picture)
  plugin = PluginData.FromString(
    found["_hparams_/session_start_info"][1].metadata.plugin_data.content
  )
  settings = plugin.session_start_info.hparams
  assert settings["optimizer.learning_rate"].number_value == 1e-3
  assert settings["name"].string_value == "x"
  assert settings["on"].bool_value
  plugin = PluginData.FromString(
    found["_hparams_/experiment"][1].metadata.plugin_data.content
  )
  (metric,) = plugin.experiment.metric_infos
  assert metric.name.tag == "final/retrieval/t_to_va/R_at_1"


def test_wandb_offline(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  picture = np.full((4, 6, 3), 200, np.uint8)
  for start in (0, 2):  # the second continues the first
    with metric_log.MetricsWriter(
      *(tmp_path,),
      start_step=start,
      tensorboard=False,
      wandb=True,
      name="night",
      config={"seed": 3},
    ) as writer:
      writer.write(start, {"loss": 2.5 - start})
      if start:
        writer.outcome(
          *(start, {"matching/va/accuracy": 0.5}),
          settings={},
          pictures={"final/examples": picture},
        )
  runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
  ident = (tmp_path / "wandb_id").read_text().strip()
  assert {run.name.rpartition("-")[2] for run in runs} == {ident}
  stored = b"".join(f.read_bytes() for r in runs for f in r.glob("*.wandb"))
  for text in (b"night", b"seed", b"loss", b"final/matching/va/accuracy"):
    assert text in stored
  (media,) = (p for r in runs for p in r.rglob("*.png"))
  with Image.open(media) as image:
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), picture)


def test_tensorboard_imports_neither_tensorflow_nor_torch(tmp_path):
  code = (
    "import sys\n"
    "from mico_jax.run.monitor import metric_log\n"
    f"metric_log.MetricsWriter({str(tmp_path)!r}).close()\n"
    "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_event_is_said_and_written(tmp_path, capsys):
  with metric_log.MetricsWriter(tmp_path, tensorboard=False) as writer:
    writer.event(4, "collapse", "at ln(batch)", losses=["tv"])
  assert "at ln(batch)" in capsys.readouterr().err
  (line,) = metric_log.read_metrics(tmp_path)
  assert line["event"] == "collapse"
  assert line["losses"] == ["tv"]


def test_disabled_writes_nothing(tmp_path):
  with metric_log.MetricsWriter(tmp_path / "run", enabled=False) as writer:
    writer.write(0, {"loss": 1.0})
    writer.event(0, "x", "y")
  assert not (tmp_path / "run").exists()


def test_missing_wandb_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ConfigError, match="pip install"):
    metric_log.MetricsWriter(tmp_path, tensorboard=False, wandb=True)


def test_no_metrics(tmp_path):
  assert metric_log.read_metrics(tmp_path) == []


def test_store_without_append(capsys):
  memory_path.register()
  folder = "memory://logging_test/run"
  with metric_log.MetricsWriter(folder, tensorboard=True) as writer:
    for step in range(4):
      writer.write(step, {"loss": float(step)})
    writer.flush()
    assert len(metric_log.read_metrics(folder)) == 4
  assert "not a local folder" in capsys.readouterr().err
  with metric_log.MetricsWriter(
    folder, start_step=2, tensorboard=False
  ) as writer:
    writer.write(2, {"loss": 7.0})
  assert [x["loss"] for x in metric_log.read_metrics(folder)] == [0.0, 1.0, 7.0]
