from __future__ import annotations

import json
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

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
