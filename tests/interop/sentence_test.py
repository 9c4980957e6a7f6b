"""Exported folders in sentence-transformers, without JAX in the process."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("sentence_transformers")

from mico_jax.cli.main import main
from mico_jax.inference.omni_model import load
from mico_jax.testing import tiny_data
from mico_jax.testing.tiny_checkpoint import save_tiny

pytestmark = [
  pytest.mark.clients,
  pytest.mark.filterwarnings("ignore"),  # of the library
]
_USER = """
import json, sys
from mico_jax.testing import torchvision_operators
torchvision_operators.define()  # the library imports torchvision
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

folder, image, sound, saved = sys.argv[1:]
model = SentenceTransformer(folder, trust_remote_code=True)
wave = np.sin(np.arange(4000) * 0.2).astype(np.float32)
mixed = [
  "a red cube",
  image,
  Image.open(image),
  sound,
  {"array": wave, "sampling_rate": 8000},
  {"video": [Image.open(image)], "audio": sound},
]
rows = model.encode(mixed, batch_size=4)
model.save(saved)
again = SentenceTransformer(saved, trust_remote_code=True)
errors = []
for wrong in (
  np.zeros(9, np.float32), "https://a.org/b.jpg", {"smell": 1},
  {"image": image, "text": "x"}, 3, {"role": "user", "content": "hi"},
):
  try:
    model.encode([wrong])
    errors.append("")
  except ValueError as error:
    errors.append(str(error))
features = model.preprocess(["a red cube", "a ball"])
loss = model(features)["sentence_embedding"].square()[:, 0].sum()
loss.backward()
grads = [p.grad.abs().sum().item() for p in model.parameters()
         if p.grad is not None]
assert "jax" not in sys.modules
print(json.dumps({
  "rows": rows.tolist(),
  "again": again.encode("a red cube").tolist(),
  "prompted": model.encode("cube", prompt="a red ").tolist(),
  "errors": errors,
  "trained": len([g for g in grads if g > 0]),
  "size": model.get_embedding_dimension(),
}))
"""


def test_encodes_mixed_inputs_as_we_do(tmp_path, capfd):
  save_tiny(tmp_path / "run")
  argv = ["export", "--to", "torch", "--compare", "off"]
  argv += [
    "--checkpoint",
    str(tmp_path / "run"),
    "--out",
    str(tmp_path / "out"),
  ]
  assert main(argv) == 0
  image, sound = tmp_path / "a.png", tmp_path / "s.wav"
  image.write_bytes(tiny_data.png(40))
  sound.write_bytes(tiny_data.wav())
  arguments = [tmp_path / "out", image, sound, tmp_path / "saved"]
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(_USER), *map(str, arguments)],
    capture_output=True,
    check=False,
    cwd=tmp_path,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  model = load(str(tmp_path / "run"), check="off")
  wave = np.sin(np.arange(4000) * 0.2).astype(np.float32)
  single = model.embed(
    text=["a red cube"],
    image=[str(image)],
    audio=[str(sound), (wave, 8000)],
  )
  from PIL import Image

  joint = model.embed(
    groups="va", video=[[Image.open(image)]], audio=[str(sound)]
  )["va"]
  expected = [
    single["text"][0],
    single["image"][0],
    single["image"][0],
    *single["audio"],
    joint[0],
  ]
  np.testing.assert_allclose(found["rows"], expected, atol=2e-6)
  np.testing.assert_allclose(found["again"], expected[0], atol=2e-6)
  np.testing.assert_allclose(found["prompted"], expected[0], atol=2e-6)
  assert found["size"] == 32
  assert found["trained"] > 10
  parts = (
    "uint8 [Y, X, 3]", "is a URL", "got smell", "no joint head",
    "cannot embed a int", "cannot embed a list",
  )  # fmt: skip
  for error, part in zip(found["errors"], parts, strict=True):
    assert part in error
