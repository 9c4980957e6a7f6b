"""Checkpoints in mteb: tasks of each modality, and search with re-ranking."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mico_jax.inference.omni_model import load
from mico_jax.testing import media, tiny_data
from mico_jax.testing.tiny_checkpoint import save_tiny

mteb = pytest.importorskip("mteb")
datasets = pytest.importorskip("datasets")
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models.models_protocols import (  # noqa: E402
  EncoderProtocol,
  SearchProtocol,
)

from mico_jax.harnesses.mteb_models import (  # noqa: E402
  MiCoEncoder,
  MiCoReranker,
)

pytestmark = [
  pytest.mark.clients,
  pytest.mark.filterwarnings("ignore"),  # of mteb and datasets
]
TEXTS = ("a red cube", "a small blue ball falls", "two cones", "it hums")


def _image(i: int) -> Image.Image:
  return Image.open(io.BytesIO(tiny_data.png(30 + 50 * i)))


def _sound(i: int) -> dict:
  rate = 8000 + 4000 * i
  wave = np.sin(np.arange(rate) * (0.05 + 0.1 * i)).astype(np.float32)
  return {"array": wave, "sampling_rate": rate}


def _video(i: int) -> dict:
  clip = media.file_of("mp4", media.greys([30 + 50 * i] * 6))
  return {"bytes": clip, "path": None}


MAKERS = {"image": _image, "audio": _sound, "video": _video}
FEATURES = {
  "image": lambda: datasets.Image(),
  "audio": lambda: {
    "array": datasets.List(datasets.Value("float32")),
    "sampling_rate": datasets.Value("int64"),
  },
  "video": lambda: datasets.Video(decode=False),
}


def _task(keys: tuple[str, ...]) -> AbsTaskRetrieval:
  """Texts against items with these modalities."""
  category = f"t2{''.join(key[0] for key in keys)}"

  class Tiny(AbsTaskRetrieval):
    metadata = TaskMetadata(
      name=f"Tiny{category.title()}",
      description="four texts and four items",
      reference=None,
      dataset={"path": "local", "revision": "1"},
      type="Any2AnyRetrieval",
      category=category,
      modalities=["text", *keys],
      eval_splits=["test"],
      eval_langs=["eng-Latn"],
      main_score="ndcg_at_10",
      date=None,
      domains=None,
      task_subtypes=None,
      license=None,
      annotations_creators=None,
      dialect=None,
      sample_creation=None,
      bibtex_citation="",
    )

    def load_data(self, **kwargs) -> None:
      ids = [str(i) for i in range(len(TEXTS))]
      columns = {key: [MAKERS[key](i) for i in range(4)] for key in keys}
      features = datasets.Features(
        {"id": datasets.Value("string")} | {k: FEATURES[k]() for k in keys}
      )
      corpus = datasets.Dataset.from_dict(
        {"id": ids, **columns}, features=features
      )
      queries = datasets.Dataset.from_dict({"id": ids, "text": list(TEXTS)})
      split = {
        "corpus": corpus,
        "queries": queries,
        "relevant_docs": {i: {i: 1} for i in ids},
        "top_ranked": None,
      }
      self.dataset = {"default": {"test": split}}
      self.data_loaded = True

  return Tiny()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  root = tmp_path_factory.mktemp("mteb")
  save_tiny(root / "run")
  return load(str(root / "run"), check="off")


def _ndcg(scores: np.ndarray) -> float:
  """nDCG@10 of the diagonal."""
  ranks = 1 + np.sum(scores > np.diag(scores)[:, None], axis=1)
  return float(np.mean(1 / np.log2(1 + ranks)))


@pytest.mark.parametrize(
  "keys", [("image",), ("audio",), ("video",), ("video", "audio")]
)
def test_tasks_of_each_modality(model, keys):
  encoder = MiCoEncoder(model, name="tiny")
  assert isinstance(encoder, EncoderProtocol)
  found = mteb.evaluate(encoder, [_task(keys)], cache=None)
  (scores,) = found.task_results[0].scores["test"]
  inputs = {
    "image": [_image(i) for i in range(4)],
    "audio": [(x["array"], x["sampling_rate"]) for x in map(_sound, range(4))],
    "video": [_video(i)["bytes"] for i in range(4)],
  }
  inputs = {key: inputs[key] for key in keys}
  group = {("video", "audio"): "va"}.get(keys, "")
  items = model.embed(groups=group, **inputs)[group or keys[0]]
  ours = model.embed(text=list(TEXTS))["text"] @ items.T
  assert scores["main_score"] == pytest.approx(_ndcg(ours), abs=1e-5)


def test_search_reorders_the_best_by_the_matching_head(model):
  reranker = MiCoReranker(model, top=2, name="tiny")
  assert isinstance(reranker, SearchProtocol)
  assert not hasattr(reranker, "predict")
  found = mteb.evaluate(reranker, [_task(("image",))], cache=None)
  assert found.model_name == "mico_jax/tiny-reranked-2"
  (scores,) = found.task_results[0].scores["test"]
  images = [_image(i) for i in range(4)]
  text = model.embed(text=list(TEXTS))["text"]
  expected = text @ model.embed(image=images)["image"].T
  for row, best in enumerate(np.argsort(-expected, axis=1)[:, :2]):
    match = model.match(text=[TEXTS[row]] * 2, image=[images[i] for i in best])
    expected[row, best] = 2 + match
  assert scores["main_score"] == pytest.approx(_ndcg(expected), abs=1e-5)


def test_what_has_no_head_is_refused(model):
  encoder = MiCoEncoder(model)
  assert encoder.encode([]).shape == (0, model.embed_dim)
  with pytest.raises(ValueError, match="cannot be re-ranked"):
    MiCoReranker(model, top=0)
  batch = {"image": [_image(0)], "audio": [_sound(0)]}
  with pytest.raises(ValueError, match=r"joint heads of the checkpoint: va"):
    encoder.encode([batch])
  with pytest.raises(ValueError, match="expected text, image"):
    encoder.encode([{"depth": [1]}])
  with pytest.raises(ValueError, match="row 1 of a batch has no 'text'"):
    encoder.encode([{"text": ["a", None]}])
