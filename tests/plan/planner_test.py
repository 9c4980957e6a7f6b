"""Plans of a tiny config, compiled for a slice that is not there."""

from __future__ import annotations

import json
import pathlib

import pytest

from mico_jax import aot
from mico_jax.cli.main import main
from mico_jax.plan.compiled import CACHE, out_of_memory

needs_compiler = pytest.mark.skipif(
  aot.missing() is not None, reason="libtpu is not installed"
)
CONFIG = '''\
"""All objectives at a tiny size."""

import dataclasses

from mico_jax import config as c
from mico_jax.models.presets import PRESETS


def get_config():
  groups = ("tva", "tid")
  names = ("contrastive", "matching", "captioning")
  return c.to_config_dict(
    c.Config(
      name="tiny",
      model=dataclasses.replace(
        PRESETS["mico_tiny"], dtype="bfloat16", remat="full"
      ),
      data=c.DataConfig(
        sources={"train": c.SourceConfig(size=64)},
        tokenizer=c.TokenizerConfig(kind="omniworld"),
      ),
      tasks={
        "all": c.TaskConfig(
          batch_size=32,
          sources={"train": 1},
          objectives=dict.fromkeys(names, groups),
        )
      },
    )
  )
'''


@pytest.fixture
def config(tmp_path: pathlib.Path, monkeypatch) -> str:
  monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
  path = tmp_path / "tiny.py"
  path.write_text(CONFIG)
  return str(path)


def test_an_unknown_topology_is_one_line(config, capsys):
  assert main(["plan", "--config", config, "--topology", "v9:2x2"]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert "unknown topology 'v9:2x2'; known: v4:{2x2x1," in error


@pytest.mark.parametrize(
  ("options", "said"),
  [
    (("--batch", "max"), "--batch max"),
    (("--batch", "many"), "--batch many"),
    (("--batch", "0"), "--batch 0"),
    (("--picture", "x.png"), "--picture"),
    (("--task", "all", "--task", "all"), "--task all"),
    (("--task", "none"), "the config has all"),
  ],
)
def test_a_sweep_refuses_what_it_would_leave_out(
  config, capsys, monkeypatch, options, said
):
  monkeypatch.setattr(aot, "missing", lambda: None)
  given = ["plan", "--config", config, "--topology", "v5e:2x2", "--sweep"]
  assert main([*given, *options]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert said in error


@needs_compiler
def test_a_batch_that_does_not_divide_is_one_line(config, capsys):
  given = ["plan", "--config", config, "--topology", "v5e:2x2", "--batch", "6"]
  assert main(given) == 2
  assert "must be a multiple of the 4 devices" in capsys.readouterr().err


@needs_compiler
@pytest.mark.slow
@pytest.mark.aot
def test_plan_of_a_tiny_config(config, tmp_path, capsys):
  picture = tmp_path / "plan.png"
  given = ["plan", "--config", config, "--topology", "v5e:2x2", "--json"]
  given += ["--steps-only", "--picture", str(picture)]
  assert main(given) == 0
  plan = json.loads(capsys.readouterr().out)
  (task,) = plan["tasks"]
  assert plan["fits"]
  assert task["fits"]
  assert task["free"] > 15e9
  assert not task["cached"]
  assert task["seconds"] > 0
  assert 0 < task["mfu"] < 0.5
  assert sum(task["shares"].values()) == pytest.approx(1.0)
  assert plan["chip_hours"] == pytest.approx(plan["days"] * 24 * 4)
  kinds = {(c["kind"], c["axes"]) for c in task["collectives"]}
  assert ("all-reduce", "data") in kinds
  parts = task["parts"]
  assert parts["optimizer"] == pytest.approx(2 * parts["parameters"], rel=0.01)
  assert picture.read_bytes().startswith(b"\x89PNG")

  assert main(given) == 0  # from the kept facts
  again = json.loads(capsys.readouterr().out)
  assert again["tasks"][0]["cached"]
  assert again["tasks"][0]["needed"] == task["needed"]


def test_the_error_of_the_compiler_says_how_much():
  text = (
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.50G of "
    "15.75G hbm. Exceeded hbm capacity by 7.75G."
  )
  needed, usable = out_of_memory(text) or (0, 0)
  assert needed == int(23.5 * 2**30)
  assert usable == int(15.75 * 2**30)
  assert out_of_memory("INTERNAL: something else") is None
