"""Who holds what, in numbers and as a picture."""

from __future__ import annotations

import json

import jax
import pytest
from PIL import Image

from mico_jax import config as c
from mico_jax.cli import main as cli
from mico_jax.run.commands import sharding_view
from mico_jax.testing import tiny_checkpoint

pytestmark = pytest.mark.multidevice

FSDP_TP = (
  "parallel.mesh={'data': 1, 'fsdp': -1, 'tensor': 2}",
  "parallel.rules=fsdp_tp",
)


def test_view_counts_pieces_and_bytes():
  config = c.override(tiny_checkpoint.tiny_config(), FSDP_TP)
  found = sharding_view.view(config)
  held = {h.path: h for h in found.arrays}
  kernel = held["params/vision/blocks/mlp/fc1/kernel"]
  fsdp = jax.device_count() // 2
  assert kernel.shape == (2, 32, 64)
  assert kernel.shard == (2, 32 // fsdp, 32)
  devices = list(found.mesh.devices.ravel())
  assert sorted(kernel.pieces(devices)) == list(range(2 * fsdp))
  bias = held["params/vision/blocks/mlp/fc2/bias"]
  assert set(bias.pieces(devices)) == {0}
  whole, part = found.totals()["params"]
  assert whole / 8 < part < whole / 2
  # Adam's two moments lie beside their parameters.
  moments = found.totals()["opt_state"]
  assert moments[1] == pytest.approx(2 * part, rel=0.01)
  assert found.rows == {"av": 8 // fsdp}


def test_command_prints_and_draws(tmp_path, capsys):
  file = tmp_path / "tiny.py"
  file.write_text(tiny_checkpoint.CONFIG_FILE)
  picture = tmp_path / "sharding.png"
  argv = ["inspect", "--config", str(file), "--sharding", str(picture)]
  argv += [f"--config.{text}" for text in FSDP_TP]
  assert cli.main(argv) == 0
  text = capsys.readouterr().out
  assert "fsdp, tensor" in text
  assert "rows on a device" in text
  with Image.open(picture) as image:
    assert image.size[0] > 600
  assert cli.main([*argv, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["mesh"]["tensor"] == 2


def test_mistakes_are_one_line(tmp_path, capsys):
  file = tmp_path / "tiny.py"
  file.write_text(tiny_checkpoint.CONFIG_FILE)
  assert cli.main(["inspect", "--config", str(file), "--devices", "4"]) == 2
  assert "belongs to --sharding" in capsys.readouterr().err
