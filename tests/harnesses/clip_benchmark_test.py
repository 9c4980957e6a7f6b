"""Exported folders in CLIP_benchmark: its metrics over our model."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mico_jax.cli.main import main
from mico_jax.inference.omni_model import load
from mico_jax.testing.tiny_checkpoint import save_tiny
from mico_jax.testing.tiny_data import png

torch = pytest.importorskip("torch")
models = pytest.importorskip("clip_benchmark.models")
from clip_benchmark.metrics import (  # noqa: E402
  zeroshot_classification,
  zeroshot_retrieval,
)

from mico_jax.harnesses import clip_benchmark_model  # noqa: E402

pytestmark = [
  pytest.mark.clients,
  pytest.mark.filterwarnings("ignore"),  # of the harness
]
TEXTS = ["a red cube", "a small blue ball falls", "two cones", "a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("clip_benchmark")
  save_tiny(root / "run")
  argv = ["export", "--to", "torch", "--compare", "off", "--checkpoint"]
  assert main([*argv, str(root / "run"), "--out", str(root / "out")]) == 0
  return root


@pytest.fixture(scope="module")
def opened(folder):
  clip_benchmark_model.register()
  return models.load_clip(
    clip_benchmark_model.MODEL_TYPE, "x", str(folder / "out"), "", "cpu"
  )


def _images() -> list[Image.Image]:
  return [Image.open(io.BytesIO(png(20 + 60 * i))) for i in range(4)]


def _similarity(folder) -> np.ndarray:
  """Of texts and images, by the checkpoint."""
  ours = load(str(folder / "run"), check="off")
  found = ours.embed(text=TEXTS, image=_images())
  return found["text"] @ found["image"].T


def test_retrieval_by_the_harness(folder, opened):
  model, transform, tokenizer = opened
  pixels = torch.stack([transform(image) for image in _images()])
  batch = (pixels, [[text] for text in TEXTS])
  found = zeroshot_retrieval.evaluate(
    model, [batch], tokenizer, "cpu", amp=False, recall_k_list=[1, 2]
  )
  scores = _similarity(folder)
  ranks = 1 + np.sum(scores > np.diag(scores)[:, None], axis=1)
  assert found["image_retrieval_recall@1"] == pytest.approx(np.mean(ranks <= 1))
  assert found["image_retrieval_recall@2"] == pytest.approx(np.mean(ranks <= 2))


def test_classification_by_the_harness(folder, opened):
  model, transform, tokenizer = opened
  pixels = torch.stack([transform(image) for image in _images()])
  names = [text.removeprefix("a ") for text in TEXTS]
  classifier = zeroshot_classification.zero_shot_classifier(
    model, tokenizer, names, ["{c}", "{c}"], "cpu", amp=False
  )
  logits, _ = zeroshot_classification.run_classification(
    model, classifier, [(pixels, torch.arange(4))], "cpu", amp=False
  )
  ours = load(str(folder / "run"), check="off")
  rows = ours.embed(text=names, image=_images())
  expected = 100 * rows["image"] @ rows["text"].T
  np.testing.assert_allclose(logits.numpy(), expected, atol=1e-3)


def test_a_folder_that_is_no_export(tmp_path):
  clip_benchmark_model.register()
  with pytest.raises(ValueError, match="mico-jax export --to torch"):
    models.load_clip("mico", "x", str(tmp_path), "", "cpu")
