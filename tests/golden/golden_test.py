"""The golden cases, and the runner's report and exit codes."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from mico_jax.interop.files import safetensors_writer
from mico_jax.testing import golden
from mico_jax.testing.golden import __main__ as runner

SMALL = pathlib.Path(__file__).parent / "cases"
# Minutes of compiling; .ci/run has them in its stage "golden".
LONG = ("mico_full", "losses", "generate", "demo_e2e")


def check(folder, name, capsys):
  code = runner.main([str(folder), "--cases", name])
  failed = [x for x in capsys.readouterr().out.splitlines() if " ok  " not in x]
  assert code == 0, "\n".join(failed)


@pytest.mark.golden
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
    for name in golden.CASES
  ],
)
def test_case(golden_dir, name, capsys):
  check(golden_dir, name, capsys)


@pytest.mark.golden
def test_layout_of_other_settings(golden_dir, tmp_path, capsys):
  """Settings are read, not assumed; an entry that differs is named."""
  theirs = golden_dir / "ckpt_layout"
  base = json.loads((theirs / "layout_evaclip02_base.json").read_text())
  (tmp_path / "layout.json").write_text(json.dumps(base))
  hps = json.loads((theirs / "hps.example.json").read_text())
  hps["model_cfg"] |= {
    "max_vision_sample_num": 6,
    "max_caption_len": 35,
    "max_omni_caption_len": 60,
    "max_subtitle_len": 50,
    "beam_size": 5,
    "itm_ratio": 0.25,
    "pool_video": True,
  }
  (tmp_path / "hps.example.json").write_text(json.dumps(hps))
  assert runner.main([str(tmp_path)]) == 1
  lines = capsys.readouterr().out.splitlines()
  (settings,) = [line for line in lines if "layout settings" in line]
  assert settings.startswith("  ok ")
  failed = "\n".join(line for line in lines if line.startswith("  FAIL"))
  assert "only ours vision_frame_embedding [1, 6, 768] float32" in failed
  assert "only stored vision_frame_embedding [1, 8, 768] float32" in failed
  assert failed.count("only") == 2


@pytest.mark.parametrize("name", sorted(p.name for p in SMALL.iterdir()))
def test_small_case(name, capsys):
  check(SMALL, name, capsys)


@pytest.fixture
def cases(tmp_path, monkeypatch):
  """Three folders: a case, a case beyond its limit, and an unknown one."""

  def case(folder):
    for name, value in folder.inputs.items():
      yield golden.Check(name, value, folder.outputs[name], 1e-3)

  monkeypatch.setitem(golden.CASES, "good", case)
  for name, error in (("good", 1e-4), ("bad", 1e-2), ("unknown", 0.0)):
    folder = tmp_path / f"{name}_7"
    folder.mkdir()
    kind = "unknown" if name == "unknown" else "good"
    (folder / "config.json").write_text(json.dumps({"case": kind}))
    value = np.ones((2, 3), np.float32)
    safetensors_writer.write_arrays(folder / "inputs.safetensors", {"x": value})
    safetensors_writer.write_arrays(
      folder / "outputs.safetensors", {"x": value + error}
    )
  return tmp_path


def test_exit_codes(cases, capsys):
  assert runner.main([str(cases), "--cases", "good_7"]) == 0
  assert runner.main([str(cases), "--cases", "good_7,unknown"]) == 2
  assert "UNSUPPORTED unknown_7: needs" in capsys.readouterr().out
  assert runner.main([str(cases)]) == 1
  out = capsys.readouterr().out
  assert "ok   x" in out
  assert "FAIL x" in out
  assert "limit 1e-03" in out
  assert runner.main([str(cases / "good_7")]) == 0
  assert runner.main([str(cases), "--cases", "nope"]) == 1
  assert runner.main([str(cases / "nothing")]) == 1


def test_outputs_without_a_comparison_are_named(cases, capsys):
  value = np.ones((2, 3), np.float32)
  path = cases / "good_7" / "outputs.safetensors"
  safetensors_writer.write_arrays(path, {"x": value, "y": value})
  assert runner.main([str(cases), "--cases", "good_7"]) == 2
  assert "UNSUPPORTED good_7 y" in capsys.readouterr().out


def test_differences():
  one = np.ones(3)
  assert golden.Check("a", one, one, 0.0).passed
  assert golden.Check("a", one * 2, one * 4, 3.0).difference == (2.0, 0.5)
  assert not golden.Check("a", one, np.ones(4)).passed
  assert not golden.Check("a", one * np.nan, one).passed
  assert golden.Check("a", np.array(["x"]), np.array(["x"]), 0.0).passed
  assert not golden.Check("a", np.array(["x"]), np.array(["y"]), 0.0).passed
