"""The documented commands with data and workdir in a store: s3:// and gs://.

Servers of this machine stand for the stores; the clients are the real ones.
"""

from __future__ import annotations

import json

import jax
import pytest
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from mico_jax.cli.main import main
from mico_jax.run.monitor.metric_log import MetricsWriter, read_metrics
from mico_jax.testing import tiny_data

CONFIG = """\
import dataclasses

from mico_jax import config as c
from mico_jax.testing import tiny_checkpoint, tiny_data


def get_config():
  tiny = tiny_checkpoint.tiny_config()
  source = tiny_data.manifest_source("{folder}/manifest.jsonl")
  return c.to_config_dict(dataclasses.replace(
    tiny,
    data=dataclasses.replace(tiny.data, sources={{"train": source}}),
    tasks={{"one": dataclasses.replace(
      tiny.tasks["av"], objectives={{"contrastive": ("ti", "ta")}})}},
    evaluation=dataclasses.replace(
      tiny.evaluation, source="train", groups=("i",)),
  ))
"""


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.slow), "gs"])
def bucket(request) -> str:
  return request.getfixturevalue(request.param)


def ok(capsys, *argv: str) -> str:
  """Runs a command that must succeed; returns its standard output."""
  status = main(argv)
  found = capsys.readouterr()
  assert status == 0, found.err
  return found.out


def test_pretrain_resume_evaluate(bucket, capsys, tmp_path, monkeypatch):
  local, folder = tmp_path / "set", epath.Path(bucket) / "set"
  tiny_data.write_manifest(local)
  folder.mkdir(parents=True, exist_ok=True)
  for file in local.iterdir():
    (folder / file.name).write_bytes(file.read_bytes())
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  (tmp_path / "tiny.py").write_text(CONFIG.format(folder=f"{bucket}/set"))
  workdir = f"{bucket}/runs/tiny"
  command = ("pretrain", "--config", str(tmp_path / "tiny.py"),
             "--workdir", workdir)  # fmt: skip

  # The first start ends in its third step, after a checkpoint.
  write = MetricsWriter.write

  def breaking(self, step, values, **options):
    if step == 2:
      raise RuntimeError("a defect")
    write(self, step, values, **options)

  with monkeypatch.context() as patch:
    patch.setattr(MetricsWriter, "write", breaking)
    with pytest.raises(RuntimeError, match="a defect"):
      main(command)
  found = json.loads(ok(capsys, *command, "--json"))
  assert found["step"] == 4
  steps = {p.name for p in (epath.Path(workdir) / "checkpoints").iterdir()}
  assert {"2", "4"} <= steps
  losses = [line for line in read_metrics(workdir) if "loss" in line]
  assert [line["step"] for line in losses] == [0, 1, 2, 3]

  results = json.loads(
    ok(capsys, "evaluate", "--checkpoint", workdir, "--json")
  )["results"]
  assert any(x["name"].endswith("R@1") for x in results)
  traced = json.loads(
    ok(capsys, "trace", "--workdir", workdir, "--step", "3", "--json")
  )
  assert len(traced["rows"]) == 8
  rows = json.loads(
    ok(capsys, "score", "--checkpoint", workdir, "--text", "a small cube",
       "--json", str(local / "0.png"))
  )  # fmt: skip
  assert rows


def test_compiled_programs_are_kept_in_a_store(bucket, monkeypatch):
  """What restarts of a pod take them from."""
  names = ("jax_compilation_cache_dir",
           "jax_persistent_cache_min_compile_time_secs")  # fmt: skip
  before = {name: getattr(jax.config, name) for name in names}
  hits = []
  jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if "cache_hits" in event else None
  )
  try:
    jax.config.update(names[0], f"{bucket}/compiled")
    jax.config.update(names[1], 0.0)
    for wanted in (0, 1):
      compilation_cache.reset_cache()
      jax.clear_caches()
      hits.clear()
      assert jax.jit(lambda x: x * 3 + 1)(2) == 7
      assert (len(hits) > 0) == bool(wanted)
    assert list((epath.Path(bucket) / "compiled").iterdir())
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
